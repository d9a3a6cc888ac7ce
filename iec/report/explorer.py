"""The data of the explorer: every finished row of all sections once, as JSON values that the page's script filters and plots."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from iec.report.entries import CALLS, SECONDS, Axis, Entry, Key
from iec.tables.experiment import COSTS
from iec.tables.styles import GREY, HUES, MARKERS

COST_NAMES = (SECONDS, CALLS, *COSTS)


def explorer(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """None without finished rows. Indices stand for scopes (a data set's reference and N), axes, values of facets, and entries;
    scores are `Ends`. ``column``: whether the table shows the axis always, not only when it is chosen.
    """
    merged = merge(entries)
    if not merged:
        return None
    counts = Counter((entry.data, entry.key[1]) for entry in merged.values())
    scopes = [scope for scope, _ in counts.most_common()]
    axes = list(dict.fromkeys(axis for entry in merged.values() for axis in entry.scores))
    firsts = {entry.first for entry in merged.values()}
    facets = _facets(merged.values())
    places = {key: k for k, key in enumerate(merged)}
    return {
        "scopes": [{"data": data, "n": n} for data, n in scopes],
        "facets": [{"name": name, "values": values} for name, values in facets.items()],
        "costs": COST_NAMES,
        "axes": [
            {
                "label": label,
                "scope": scopes.index((axis.data, axis.n)),
                "higher": axis.higher_is_better,
                "column": axis in firsts or bool(axis.beside),
            }
            for axis, label in zip(axes, _labels(axes), strict=True)
        ],
        "entries": [
            {
                "cell": entry.key[0],
                "scope": scopes.index((entry.data, entry.key[1])),
                "places": [asdict(place) for place in entry.places],
                "facets": [facets[name].index(value) for name, value in entry.facets.items()],
                "costs": [entry.costs.get(name) for name in COST_NAMES],
                "calls": entry.calls,
                "arithmetic": entry.arithmetic,
                "simulated": entry.simulated,
                "machines": entry.machines,
                "scores": {axes.index(axis): ends for axis, ends in entry.scores.items()},
                "base": None if entry.base is None else places[entry.base],
                "command": entry.command,
            }
            for entry in merged.values()
        ],
        "hues": HUES,
        "grey": GREY,
        "markers": MARKERS,
    }


def merge(entries: Iterable[Entry]) -> dict[Key, Entry]:
    """Entries of one key become one: what is known of it in any section."""
    merged: dict[Key, Entry] = {}
    for entry in entries:
        other = merged.get(entry.key)
        if other is not None:
            entry = replace(
                other,
                places=other.places + entry.places,
                scores=other.scores | entry.scores,
                first=other.first or entry.first,
                base=other.base or entry.base,
            )
        merged[entry.key] = entry
    return merged


def _facets(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """Name -> its values: numbers in their order, others as they are met, after ``none``."""
    values: dict[str, dict[str, None]] = {}
    for entry in entries:
        for name, value in entry.facets.items():
            values.setdefault(name, {})[value] = None
    return {name: sorted(found, key=_rank) for name, found in values.items()}


def _rank(value: str) -> tuple[bool, int]:
    return value != "none", int(value) if value.isdecimal() else 0


def _labels(axes: list[Axis]) -> list[str]:
    """Of each axis one of its own in its data set and N: with what it compares with, where the words are the same."""
    texts = [f"{axis.label}: {axis.beside}" if axis.beside else axis.label for axis in axes]
    counts = Counter((axis.data, axis.n, text) for axis, text in zip(axes, texts, strict=True))
    return [
        f"{text} ({axis.compared_with[-8:]})" if counts[axis.data, axis.n, text] > 1 else text
        for axis, text in zip(axes, texts, strict=True)
    ]
