"""Hydra overrides of the rows of an experiment file, and those that are given for all of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.errors import HydraException

from iec.errors import ConfigError
from iec.runs.config import composing
from iec.tables.scales import Scale

TECHNIQUE = "efficiency"


def value_of(overrides: Sequence[str], key: str) -> str:
    """Of a key that is given twice the last counts, as for Hydra; empty for the default."""
    return next((text.partition("=")[2] for text in reversed(overrides) if text.startswith(f"{key}=")), "")


def key_of(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def require_kept(path: Path, rows: Sequence[Sequence[str]], extra: Sequence[str], scale: Scale) -> None:
    """Raises `ConfigError` for an override of all rows that takes away what their labels say that they differ by."""
    for override in extra:
        key = key_of(override)
        if len(values := dict.fromkeys(value_of(overrides, key) for overrides in rows)) > 1:
            way_out = "Use --model NAME" if key == "model" and scale.instruments else "Leave it out, or change the rows in a copy"
            raise ConfigError(
                f"{path}: {override} would make rows alike that differ: {key}={' or '.join(v or 'default' for v in values)}. "
                f"{way_out}."
            )


def with_extra(rows: dict[str, list[str]], extra: Sequence[str]) -> dict[str, list[str]]:
    """The rows with the overrides of all rows after their own.

    One of a technique, such as ``efficiency.kernels=int8``, is for the rows whose technique has this key: full precision has no
    kernels to choose. If no row's technique has it, all rows keep it, and their cells say that it is unknown.
    """
    keys = {override: key_of(override).split(".")[1] for override in extra if key_of(override).startswith(f"{TECHNIQUE}.")}
    known = _keys(value_of(own, TECHNIQUE) for own in rows.values()) if keys else {}
    takers = {o: {label for label, own in rows.items() if key in known[value_of(own, TECHNIQUE)]} for o, key in keys.items()}
    return {label: [*own, *(o for o in extra if not takers.get(o) or label in takers[o])] for label, own in rows.items()}


def _keys(techniques: Iterable[str]) -> dict[str, frozenset[str]]:
    """Technique -> its keys; none of one that cannot be composed: its cell says why."""
    found = {}
    with composing() as composed:
        for name in dict.fromkeys(techniques):
            try:
                found[name] = frozenset(map(str, composed([f"{TECHNIQUE}={name}"] if name else [])[TECHNIQUE]))
            except HydraException:
                found[name] = frozenset()
    return found
