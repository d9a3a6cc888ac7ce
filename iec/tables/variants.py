"""The rows of an experiment file times its variants."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from iec.errors import ConfigError


def axes_of(path: Path, entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One or two mappings, ending of the label -> variant."""
    given = entry.get("variants") or {"": []}
    axes = given if isinstance(given, list) else [given]
    if len(axes) > 2:
        raise ConfigError(f"{path}: variants has {len(axes)} axes; give one, or a list of two.")
    return axes


def times_variants(
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


def bases_of(
    path: Path,
    labels: Collection[str],
    rows: Iterable[str],
    axes: Sequence[Mapping[str, Any]],
    to: str | Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """label -> that of the row that it is compared with.

    labels: of all rows there are, of ``rows`` times the variants. to: {label: labels that are compared with it}; or an ending, that
    of the row which differs by its variant of the last axis alone. Raises `ConfigError` for an ending that no variant has, for
    labels that are not there, and for a row that would be compared twice, or with itself.
    """
    if not isinstance(to, str):
        return _named_bases(path, labels, to)
    last, stems = axes[-1], stems_of(rows, axes)
    if to not in last:
        raise ConfigError(f"{path}: compare_to: {to!r} is no ending of the variants; choose one of {', '.join(map(repr, last))}.")
    pairs = [(stem + ending, stem + to) for stem in stems for ending in last if ending != to]
    return {label: base for label, base in pairs if {label, base} <= set(labels)}


def _named_bases(path: Path, labels: Collection[str], to: Mapping[str, Sequence[str]]) -> dict[str, str]:
    pairs = [(label, base) for base, others in to.items() for label in others]
    if unknown := sorted({label for pair in pairs for label in pair} - set(labels)):
        raise ConfigError(f"{path}: compare_to names {unknown}, which are not rows. Correct the labels.")
    if len(dict(pairs)) < len(pairs) or any(label == base for label, base in pairs):
        raise ConfigError(f"{path}: compare_to: a row is compared with one other row. Name each once.")
    return dict(pairs)


def with_ending(labels: Collection[str], rows: Iterable[str], axes: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """The labels that are among the ``names``, and for a name that is an ending of the last axis all labels with it; other names as
    they are.
    """
    stems, found = stems_of(rows, axes), []
    for name in names:
        own = [stem + name for stem in stems if stem + name in labels]
        found += own if name in axes[-1] and name not in labels else [name]
    return found


def stems_of(rows: Iterable[str], axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What labels begin with, before the ending of the last axis."""
    return ["".join(parts) for parts in product(rows, *axes[:-1])]


def _variant(path: Path, rows: Mapping[str, list[str]], variant: Any) -> tuple[Collection[str], list[str]]:
    """The labels of the rows that it is for, and its overrides."""
    if not isinstance(variant, Mapping):
        return rows, variant
    if unknown := set(variant["of"]) - rows.keys():
        raise ConfigError(f"{path}: a variant is of {sorted(unknown)}, which are not rows. Correct the labels.")
    return variant["of"], variant["overrides"]
