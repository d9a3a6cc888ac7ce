"""An experiment file: the rows of a table, each a cell given by Hydra overrides, with what was published about it."""

import logging
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import HydraException
from omegaconf import DictConfig

from iec.efficiency.cost import CallCost
from iec.errors import ConfigError, IECError, MismatchError
from iec.io.resources import experiment_file, experiments
from iec.io.yaml import read_yaml
from iec.metrics.paired import DEFAULT, PAIRED
from iec.models.cards import card
from iec.runs.cell import Cell
from iec.runs.config import composing
from iec.tables.overrides import require_kept, value_of, with_extra
from iec.tables.published import Published, published_values
from iec.tables.scales import Scale, ScaledRow
from iec.tables.variants import axes_of, bases_of, times_variants, with_ending

log = logging.getLogger(__name__)
E = TypeVar("E", bound=Exception)
COSTS: dict[str, Callable[[CallCost], float]] = {
    "bit operations an image (T)": lambda cost: cost.bops / 1e12,
    "multiply-adds an image (G)": lambda cost: cost.macs / 1e9,
}
"""What quality is plotted against, by the label of the axis."""


@dataclass(frozen=True)
class Experiment:
    """rows: label -> overrides of ``iec run``. references: rows that those of the same model and seed are paired with, image by
    image (of several the one of the same timetable, or the last); none in a file that is only analysed.

    figures: name -> labels that share one plot of error against step, and all pictures where the table has too many rows for one;
    one plot of all rows if there are none. grid: labels whose samples are shown, see `iec.tables.figures` if there are none. cost:
    a key of `COSTS`, the first if not given. published: label -> column -> value, from ``source``. labels: all rows, those
    included that this scale cannot compute. scale, replaced: see `Scale`. left_out: why -> labels of rows whose technique an ideal
    model, chosen as an instrument, does not take. product: in a file with two axes of variants the labels of its rows and the
    endings of either axis, whose every combination may be a row. paired: names of the paired scores that are shown, keys of
    `iec.metrics.paired.PAIRED`. compared: row -> the row of its technique that it is compared with, see `iec.tables.comparison`.
    noise: labels of the rows whose noise is drawn, see `iec.tables.noise`. again: the command that computes the table, without
    folders of this machine.
    """

    name: str
    title: str
    references: tuple[str, ...]
    rows: dict[str, list[str]]
    figures: dict[str, list[str]]
    published: dict[str, dict[str, Published]] = field(default_factory=dict)
    source: str = ""
    labels: tuple[str, ...] = ()
    cost: str = next(iter(COSTS))
    replaced: tuple[str, ...] = ()
    scale: str = ""
    grid: tuple[str, ...] = ()
    left_out: dict[str, list[str]] = field(default_factory=dict)
    product: tuple[tuple[str, ...], ...] = ()
    paired: tuple[str, ...] = DEFAULT
    compared: dict[str, str] = field(default_factory=dict)
    noise: tuple[str, ...] = ()
    again: str = ""

    @classmethod
    def read(cls, path: Path, extra: Sequence[str] = (), scale: str | None = None, models: Sequence[str] = ()) -> "Experiment":
        """path: a file, or the name of one of the project's. ``extra`` overrides apply to every row, after its own. Raises
        `ConfigError`.

        The file's ``compare_to`` says which rows are compared with which, see `bases_of`, and ``noise`` may name
        endings, too. Its ``variants``, ending of the label -> overrides, make several rows of each; a list of two such axes makes
        their product. A variant of some rows alone is {of: [label, ..], overrides: [..]}. Its ``scales``: name -> {overrides,
        replace, instruments_for}, see `Scale`. scale, models: which of them, with which instruments, see `Scale.of`.
        """
        path = experiment_file(path)
        if not path.exists():
            ours = ", ".join(sorted(file.stem for file in experiments().glob("*.yaml")))
            raise ConfigError(f"There is no experiment file {path}. Give the path of one, or a name of the project's: {ours}.")
        entry = read_yaml(path)
        try:
            chosen = Scale.of(path, entry.get("scales") or {}, scale, models)
            experiment = replace(cls._of(path, entry, chosen, extra), again=_command(path, chosen, models, extra))
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not an experiment file ({error!r}); see experiments/bundled.yaml.") from error
        ideal = {model for model in models if card(model).dataset is not None}
        return experiment._fitting(ideal) if ideal else experiment

    @classmethod
    def _of(cls, path: Path, entry: Mapping[str, Any], scale: Scale, extra: Sequence[str]) -> "Experiment":
        """Of what the file says; raises `ConfigError` and what comes of entries of a wrong type."""
        axes = axes_of(path, entry)
        pairs = times_variants(path, entry.get("common", []), entry["rows"], axes)
        known, to = dict(pairs), entry.get("compare_to")
        _require_distinct(path, [label for label, _ in pairs], "an ending of the variants included")
        if scale.instruments and len(axes) == 2:
            raise ConfigError(f"{path}: rows of several instruments have no map over two axes of variants. Give one axis.")
        named, figures, published = _named(path, entry, axes, known)
        bases = {} if to is None else bases_of(path, known, entry["rows"], axes, to)
        cost, paired = entry.get("cost", cls.cost), tuple(entry.get("paired") or cls.paired)
        _check(path, cost, paired, figures)
        rows = scale.rows(pairs, published)
        _require_distinct(path, [row.label for row in rows], "without what is before ': ' in those of an instrument")
        require_kept(path, [row.overrides for row in rows if row.overrides is not None], extra, scale)

        def at_scale(used: Iterable[str]) -> tuple[str, ...]:
            return tuple(row.label for label in used for row in rows if row.origin == label)

        return cls(
            name=path.stem,
            title=entry["title"],
            references=at_scale(named["reference"]),
            rows=with_extra({row.label: row.overrides for row in rows if row.overrides is not None}, extra),
            figures={name: list(at_scale(labels)) for name, labels in figures.items()},
            published=published_values(
                {row.label: published[row.origin] for row in rows if row.published and row.origin in published}
            ),
            source=entry.get("source") or "",
            labels=tuple(row.label for row in rows),
            cost=cost,
            replaced=scale.replaced,
            scale=scale.name,
            grid=at_scale(named["grid"]),
            product=(tuple(entry["rows"]), *map(tuple, axes)) if len(axes) == 2 else (),
            paired=paired,
            compared=_compared(rows, bases),
            noise=at_scale(named["noise"]),
        )

    def _fitting(self, models: Collection[str]) -> "Experiment":
        """Without the rows whose technique these models do not take; raises `MismatchError` if none is left."""
        theirs = replace(self, rows={label: own for label, own in self.rows.items() if value_of(own, "model") in models})
        errors = {label: error for label, error in theirs.available((IECError,))[1].items() if isinstance(error, MismatchError)}
        if errors.keys() == self.rows.keys():
            raise next(iter(errors.values()))
        left_out: dict[str, list[str]] = {}
        for label, error in errors.items():
            left_out.setdefault(str(error), []).append(label)
        for why, labels in left_out.items():
            log.warning("left out: %s: %s", ", ".join(labels), why)
        rows = {label: overrides for label, overrides in self.rows.items() if label not in errors}
        return replace(self, rows=rows, labels=tuple(x for x in self.labels if x not in errors), left_out=left_out)

    def by_model(self) -> dict[str, "Experiment"]:
        """Model -> its rows as an experiment whose title names it: scores and costs of two models have no common scale. The whole,
        under an empty name, where all rows are of one.
        """
        models = {label: value_of(overrides, "model") for label, overrides in self.rows.items()}
        names = dict.fromkeys(models.values())
        if len(names) < 2:
            return {"": self}
        parts = {name: {label: own for label, own in self.rows.items() if models[label] == name} for name in names}
        return {name: replace(self, title=f"{self.title}, {name}", rows=rows) for name, rows in parts.items()}

    def cells(self) -> dict[str, Cell]:
        """label -> checked cell. Raises `ConfigError` naming the row whose overrides cannot be composed, and what a row lacks."""
        return self.available(())[0]

    def available(self, forgiven: tuple[type[E], ...]) -> tuple[dict[str, Cell], dict[str, E]]:
        """label -> checked cell, and label -> error of the rows that end in one of the errors ``forgiven``; raises all others."""
        cells: dict[str, Cell] = {}
        errors: dict[str, E] = {}
        with composing() as composed:
            for label, overrides in self.rows.items():
                try:
                    cells[label] = _cell(label, overrides, composed)
                except forgiven as error:
                    errors[label] = error
        return cells, errors

    def command(self, label: str) -> str:
        """The shell command that computes a row alone."""
        return f"python -m iec run {shlex.join(self.rows[label])}"

    def portable_command(self, label: str) -> str:
        """The same without folders of this machine, for files that others read."""
        return f"python -m iec run {_portable(self.rows[label])}"


def _cell(label: str, overrides: list[str], composed: Callable[[Iterable[str]], DictConfig]) -> Cell:
    try:
        return Cell.from_config(composed(overrides))
    except HydraException as error:
        raise ConfigError(f"Row {label!r} ({' '.join(overrides)}): {error}") from error


def _portable(overrides: Iterable[str]) -> str:
    return shlex.join(text for text in overrides if not text.startswith("paths."))


def _command(path: Path, scale: Scale, models: Sequence[str], extra: Sequence[str]) -> str:
    """Of a whole table."""
    options = ["--scale", scale.name] if scale.name else []
    options += ["--model", ",".join(models)] if models else []
    return f"python -m iec.tables {_portable([f'{path.parent.name}/{path.name}', *options, '--run', *extra])}"


def _named(
    path: Path, entry: Mapping[str, Any], axes: Sequence[Mapping[str, Any]], known: Mapping[str, Any]
) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, Any]]:
    """Key of the file -> labels; figure -> labels; label -> what is published. known: by label, all rows of the file. Raises
    `ConfigError` for a label that is none of them.
    """
    given, figures, published = entry.get("reference") or [], entry.get("figures") or {}, entry.get("published") or {}
    named = {
        "reference": [given] if isinstance(given, str) else given,
        "grid": entry.get("grid") or [],
        "noise": with_ending(known, entry["rows"], axes, entry.get("noise") or []),
    }
    for key, labels in [*named.items(), ("published", published), *figures.items()]:
        if unknown := sorted(set(labels) - known.keys()):
            raise ConfigError(f"{path}: {key} names {unknown}, which are not rows. Correct the labels.")
    return named, figures, published


def _require_distinct(path: Path, labels: Sequence[str], how: str) -> None:
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{path}: two rows have the same label, {how}. Rename one.")


def _compared(rows: Sequence[ScaledRow], bases: Mapping[str, str]) -> dict[str, str]:
    """Label -> that of the row of its model that it is compared with. bases: the same by the labels of the file."""
    places = {(row.origin, value_of(row.overrides or (), "model")): row.label for row in rows}
    pairs = {label: (bases.get(origin), model) for (origin, model), label in places.items()}
    return {label: places[base] for label, base in pairs.items() if base in places}


def _check(path: Path, cost: str, paired: Sequence[str], figures: Mapping[str, Any]) -> None:
    if unknown := set(paired) - PAIRED.keys():
        raise ConfigError(f"{path}: paired: unknown scores {sorted(unknown)}; choose from {', '.join(PAIRED)}.")
    if cost not in COSTS:
        raise ConfigError(f"{path}: cost: {cost!r}; choose one of {', '.join(map(repr, COSTS))}.")
    for name in figures:
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise ConfigError(f"{path}: the figure {name!r} names a file; use letters, digits, _ and - only.")
