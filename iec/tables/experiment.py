"""An experiment file: the rows of a table, each a cell given by Hydra overrides, with what was published about it."""

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from iec.efficiency.cost import CallCost
from iec.errors import ConfigError
from iec.io.resources import configs, experiment_file
from iec.io.yaml import read_yaml
from iec.metrics.paired import PAIRED, PSNR
from iec.runs.cell import Cell
from iec.runs.config import register

E = TypeVar("E", bound=Exception)
COSTS: dict[str, Callable[[CallCost], float]] = {
    "bit operations an image (T)": lambda cost: cost.bops / 1e12,
    "multiply-adds an image (G)": lambda cost: cost.macs / 1e9,
}
"""What quality is plotted against, by the label of the axis."""
EVIDENCE = {
    "known": "read in the primary source",
    "secondary": "from a secondary summary that quotes the paper",
    "review": "from a published review of the paper",
    "unknown": "not known to us",
}


@dataclass(frozen=True)
class Published:
    """A value that a paper gives for a row; None where it is not known. evidence: a key of `EVIDENCE`."""

    value: float | None
    evidence: str

    def __str__(self) -> str:
        return "?" if self.value is None else f"{self.value:g} ({self.evidence[0]})"


@dataclass(frozen=True)
class Experiment:
    """rows: label -> overrides of ``iec run``. references: rows that those of the same model are paired with, image by image;
    none in a file that is only analysed.

    figures: name -> labels that share one plot of error against step; one plot of all rows if there are none. grid: labels whose
    samples are shown, see `iec.tables.figures` if there are none. cost: a key of `COSTS`, the first if not given. published: label
    -> column -> value, from ``source``. elsewhere: rows that this scale cannot compute. replaced: models that another one stands in
    for. labels: all rows in the file's order. scale: empty without scales. product: in a file with two axes of variants the labels
    of its rows and the endings of either axis, whose every combination may be a row. paired: names of the paired scores that are
    shown, keys of `iec.metrics.paired.PAIRED`.
    """

    name: str
    title: str
    references: tuple[str, ...]
    rows: dict[str, list[str]]
    figures: dict[str, list[str]]
    published: dict[str, dict[str, Published]] = field(default_factory=dict)
    source: str = ""
    elsewhere: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    cost: str = next(iter(COSTS))
    replaced: tuple[str, ...] = ()
    scale: str = ""
    grid: tuple[str, ...] = ()
    product: tuple[tuple[str, ...], ...] = ()
    paired: tuple[str, ...] = (PSNR.name,)

    @classmethod
    def read(cls, path: Path, extra: Sequence[str] = (), scale: str | None = None) -> "Experiment":
        """path: a file, or the name of one of the project's. ``extra`` overrides apply to every row, after its own. Raises
        `ConfigError`.

        The file's ``variants``, ending of the label -> overrides, make several rows of each; a list of two such axes makes their
        product. A variant of some rows alone is {of: [label, ..], overrides: [..]}. Its ``scales``: name -> {overrides: of all
        rows, replace: an override -> the list that takes its place, or null for rows that this scale cannot compute}. scale: which
        one; None: ``paper`` where there is a GPU, else ``small``.
        """
        path = experiment_file(path)
        entry = read_yaml(path)
        try:
            chosen, everywhere, replaced = _scale(path, entry.get("scales") or {}, scale)
            axes = _axes(path, entry)
            pairs = _product(path, entry.get("common", []), entry["rows"], axes)
            labels = tuple(label for label, _ in pairs)
            done = {label: _replace(overrides, replaced) for label, overrides in pairs}
            rows = {label: [*own, *everywhere, *extra] for label, own in done.items() if own is not None}
            given = entry.get("reference") or []
            experiment = cls(
                name=path.stem,
                title=entry["title"],
                references=tuple([given] if isinstance(given, str) else given),
                rows=rows,
                figures=entry.get("figures") or {},
                published=_published(entry.get("published") or {}),
                source=entry.get("source") or "",
                elsewhere=tuple(label for label in labels if label not in rows),
                labels=labels,
                cost=entry.get("cost", cls.cost),
                replaced=tuple(key.removeprefix("model=") for key, to in replaced.items() if key.startswith("model=") and to),
                scale=chosen,
                grid=tuple(entry.get("grid") or ()),
                product=(tuple(entry["rows"]), *map(tuple, axes)) if len(axes) == 2 else (),
                paired=tuple(entry.get("paired") or cls.paired),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not an experiment file ({error!r}); see experiments/bundled.yaml.") from error
        if len(done) < len(pairs):
            raise ConfigError(f"{path}: two rows have the same label, an ending of the variants included. Rename one.")
        experiment._check(path)
        return experiment

    def _check(self, path: Path) -> None:
        for label in self.references:
            if label not in self.labels:
                raise ConfigError(f"{path}: reference {label!r} is not one of its rows {list(self.labels)}.")
        if self.cost not in COSTS:
            raise ConfigError(f"{path}: cost: {self.cost!r}; choose one of {', '.join(map(repr, COSTS))}.")
        for name in self.figures:
            if not re.fullmatch(r"[\w-]+", name, re.ASCII):
                raise ConfigError(f"{path}: the figure {name!r} names a file; use letters, digits, _ and - only.")
        if unknown := set(self.paired) - PAIRED.keys():
            raise ConfigError(f"{path}: paired: unknown scores {sorted(unknown)}; choose from {', '.join(PAIRED)}.")
        drawn = {label for labels in self.figures.values() for label in labels} | set(self.grid)
        if unknown := drawn - set(self.labels):
            raise ConfigError(f"{path}: its figures and grid name {sorted(unknown)}, which are not rows. Correct the labels.")
        if unknown := self.published.keys() - set(self.labels):
            raise ConfigError(f"{path}: values are published for {sorted(unknown)}, which are not rows. Correct the labels.")

    def cells(self) -> dict[str, Cell]:
        """label -> checked cell. Raises `ConfigError` naming the row whose overrides cannot be composed, and what a row lacks."""
        return self.available(())[0]

    def available(self, forgiven: tuple[type[E], ...]) -> tuple[dict[str, Cell], dict[str, E]]:
        """label -> checked cell, and label -> error of the rows that end in one of the errors ``forgiven``; raises all others."""
        register()
        cells: dict[str, Cell] = {}
        errors: dict[str, E] = {}
        with initialize_config_dir(str(configs()), version_base="1.3"):
            for label, overrides in self.rows.items():
                try:
                    cells[label] = _cell(label, overrides)
                except forgiven as error:
                    errors[label] = error
        return cells, errors

    def command(self, label: str) -> str:
        """The shell command that computes a row alone."""
        return f"python -m iec run {shlex.join(self.rows[label])}"


def _cell(label: str, overrides: list[str]) -> Cell:
    try:
        return Cell.from_config(compose("config", overrides=overrides))
    except HydraException as error:
        raise ConfigError(f"Row {label!r} ({' '.join(overrides)}): {error}") from error


def _axes(path: Path, entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One or two mappings, ending of the label -> variant."""
    given = entry.get("variants") or {"": []}
    axes = given if isinstance(given, list) else [given]
    if len(axes) > 2:
        raise ConfigError(f"{path}: variants has {len(axes)} axes; give one, or a list of two.")
    return axes


def _product(
    path: Path, common: list[str], rows: Mapping[str, list[str]], axes: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[str]]]:
    """(label, overrides) of every row with a variant of each axis; an axis applies its overrides after those before it."""
    pairs = []
    for label, own in rows.items():
        for chosen in product(*(axis.items() for axis in axes)):
            variants = [_variant(path, rows, variant) for _, variant in chosen]
            if all(label in of for of, _ in variants):
                overrides = [override for _, added in variants for override in added]
                pairs.append((label + "".join(ending for ending, _ in chosen), [*common, *own, *overrides]))
    return pairs


def _variant(path: Path, rows: Mapping[str, list[str]], variant: Any) -> tuple[Collection[str], list[str]]:
    """The labels of the rows that it is for, and its overrides."""
    if not isinstance(variant, Mapping):
        return rows, variant
    if unknown := set(variant["of"]) - rows.keys():
        raise ConfigError(f"{path}: a variant is of {sorted(unknown)}, which are not rows. Correct the labels.")
    return variant["of"], variant["overrides"]


def _scale(path: Path, scales: Mapping[str, Any], requested: str | None) -> tuple[str, list[str], Mapping[str, list[str] | None]]:
    """The name of the scale, what it adds to all rows, and what it replaces."""
    if not scales:
        if requested is not None:
            raise ConfigError(f"{path} has no scales; leave --scale {requested} out.")
        return "", [], {}
    name = requested or ("paper" if torch.cuda.is_available() else "small")
    if name not in scales:
        raise ConfigError(f"{path} has no scale {name!r}; choose one of {', '.join(scales)}.")
    return name, scales[name].get("overrides") or [], scales[name].get("replace") or {}


def _replace(overrides: list[str], replaced: Mapping[str, list[str] | None]) -> list[str] | None:
    """None if one of the overrides cannot be had."""
    result: list[str] = []
    for override in overrides:
        instead = replaced.get(override, [override])
        if instead is None:
            return None
        result += instead
    return result


def _published(entry: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, dict[str, Published]]:
    """``label: {FID: [4.32, secondary]}``. Raises `ConfigError` for evidence of no known kind."""
    values = {label: {column: Published(*pair) for column, pair in columns.items()} for label, columns in entry.items()}
    for label, columns in values.items():
        for column, value in columns.items():
            if value.evidence not in EVIDENCE or (value.value is None) != (value.evidence == "unknown"):
                raise ConfigError(
                    f"published: {label}: {column}: [{value.value}, {value.evidence}] needs one of {', '.join(EVIDENCE)}, and null "
                    "with unknown."
                )
    return values
