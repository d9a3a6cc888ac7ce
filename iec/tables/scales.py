"""The scales of an experiment file: which rows a machine can compute, with what, and which models stand in for the paper's."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from iec.errors import ConfigError
from iec.models.cards import card, card_names


class ScaledRow(NamedTuple):
    """A row of the file at a scale. origin: its label in the file. overrides: None if this scale cannot compute it. published:
    whether the values that are published for it stand beside it.
    """

    origin: str
    label: str
    overrides: list[str] | None
    published: bool = True


def bundled_instruments() -> tuple[str, ...]:
    """The trained models that the package carries."""
    return tuple(name for name in card_names() if card(name).packaged is not None and card(name).dataset is None)


@dataclass(frozen=True)
class Scale:
    """name: empty for a file without scales. overrides: of all rows, after their own. replace: an override -> the list that takes
    its place, or None for rows that this scale cannot compute. instruments: models that take the place of ``instruments_for``, a
    model of the paper, each in rows of its own.
    """

    name: str = ""
    overrides: tuple[str, ...] = ()
    replace: Mapping[str, list[str] | None] = field(default_factory=dict)
    instruments_for: str | None = None
    instruments: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path, scales: Mapping[str, Any], requested: str | None, models: Sequence[str]) -> "Scale":
        """One of the scales of the file. requested: its name; None: ``paper`` where there is a GPU, else ``small``; the first with
        instruments where models are chosen. models: the instruments; none: `bundled_instruments`. Raises `ConfigError`.
        """
        if not scales:
            if requested is not None:
                raise ConfigError(f"{path} has no scales; leave --scale {requested} out.")
            if models:
                raise ConfigError(f"{path} has no scales: its rows name their model. Use model={models[0]}.")
            return cls()
        suited = [name for name, entry in scales.items() if entry.get("instruments_for")]
        name = requested or (suited[0] if models and suited else "paper" if torch.cuda.is_available() else "small")
        if name not in scales:
            raise ConfigError(f"{path} has no scale {name!r}; choose one of {', '.join(scales)}.")
        if models and name not in suited:
            raise ConfigError(
                f"{path}: --model chooses what stands in for the paper's models, and nothing does at the scale {name!r}. "
                f"{f'Use --scale {suited[0]}, or leave' if suited else 'Leave'} --model out."
            )
        entry = scales[name]
        replaced = entry.get("instruments_for")
        return cls(
            name=name,
            overrides=tuple(entry.get("overrides") or ()),
            replace=entry.get("replace") or {},
            instruments_for=replaced and card(replaced).name,
            instruments=tuple(card(model).name for model in dict.fromkeys(models or bundled_instruments())) if replaced else (),
        )

    @property
    def replaced(self) -> tuple[str, ...]:
        """The models that others stand in for."""
        models = [key.removeprefix("model=") for key, to in self.replace.items() if key.startswith("model=") and to]
        return (*models, *([self.instruments_for] if self.instruments_for else ()))

    def rows(self, pairs: Sequence[tuple[str, list[str]]], published: Collection[str]) -> list[ScaledRow]:
        """Those of one instrument after those of the other, then all rows without one; each in the file's order.

        pairs: (label, overrides) of the file. A label ``SETTING: ROW``, or ``ROW``, becomes ``INSTRUMENT: ROW``. published: labels
        that a value is published for. It stands beside rows of an instrument of the same data set only; if none is chosen, in a row
        of the file's label that has nothing else.
        """
        model = f"model={self.instruments_for}"
        result = []
        for name in self.instruments:
            instead = {model: [f"model={name}"]}
            for label, overrides in pairs:
                if model in overrides:
                    new = f"{name}: {_row(label)}"
                    result.append(ScaledRow(label, new, self._replaced(overrides, instead), self._comparable(name)))
        alone = not any(map(self._comparable, self.instruments))
        for label, overrides in pairs:
            if model not in overrides:
                result.append(ScaledRow(label, label, self._replaced(overrides, {})))
            elif alone and label in published:
                result.append(ScaledRow(label, label, None))
        return result

    def _comparable(self, instrument: str) -> bool:
        """Whether it is scored against the images that the paper's model is scored against."""
        return self.instruments_for is not None and card(instrument).reference == card(self.instruments_for).reference

    def _replaced(self, overrides: Sequence[str], instrument: Mapping[str, list[str]]) -> list[str] | None:
        """None if one of the overrides cannot be had."""
        result: list[str] = []
        for override in overrides:
            instead = {**self.replace, **instrument}.get(override, [override])
            if instead is None:
                return None
            result += instead
        return [*result, *self.overrides]


def _row(label: str) -> str:
    """Of a label ``SETTING: ROW``, or ``ROW``."""
    setting, colon, row = label.partition(": ")
    return row if colon else setting


def add_scale_options(parser: argparse.ArgumentParser) -> None:
    """``--scale`` and ``--model``, for commands that read experiment files."""
    parser.add_argument("--scale", help="of files that have scales; by default paper where there is a GPU, else small")
    parser.add_argument(
        "--model",
        action="extend",
        type=_models,
        default=[],
        metavar="NAME[,NAME]",
        help=f"stands in for the paper's model at the small scale; by default {' and '.join(bundled_instruments())}",
    )


def _models(text: str) -> list[str]:
    try:
        return [card(name).name for name in text.split(",")]
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
