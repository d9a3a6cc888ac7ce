"""Rows beside the plain row of their technique: what they change, whether that is chance, and which rows cost the same.

The change of a mean over images is tested by Student's t on the differences d_n of the images that start from the same noise:

    t = mean(d) / sqrt(sum (d_n - mean(d))^2 / (N (N - 1))),   N - 1 degrees of freedom, two-sided

An FID is no mean, but to first order it moves with each image by its influence (`iec.metrics.influence`): the differences of the
influences take the place of d_n - mean(d), and the change of the FID that of mean(d). Rows that are compared with one row are a
family, and their p are adjusted by Holm's method, for each score: where an adjusted p is below 0.05, the chance that any of the
family's that are is a false alarm is at most 5 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from iec.errors import ConfigError
from iec.metrics.interval import LEVEL, Interval
from iec.runs.scoring import fid_influence
from iec.tables.experiment import COSTS, Experiment
from iec.tables.rows import Comparison, Row

SAME_COST = 1.05
"""The largest cost of a group, relative to the smallest."""


def compared(rows: Sequence[Row], experiment: Experiment) -> list[Row]:
    """The rows with what they change and their groups of equal cost, if the experiment compares its rows. Raises `ConfigError` for
    one that is compared with a row of another seed, whose images start from other noise.
    """
    if not experiment.compared:
        return list(rows)
    by_label = {row.label: row for row in rows}
    for label, base in experiment.compared.items():
        if {label, base} <= by_label.keys() and by_label[label].result.cell.seed != by_label[base].result.cell.seed:
            raise ConfigError(
                f"{experiment.name}: {label!r} is compared with {base!r}, of another seed. Compare it with one of its own."
            )
    changes = _changes(rows, experiment.compared)
    groups: dict[str, str] = {}
    for part in experiment.by_model().values():
        known = {label: by_label[label].image_cost for label in part.rows if label in by_label}
        groups |= cost_groups({label: COSTS[experiment.cost](cost) for label, cost in known.items() if cost is not None})
    return [replace(row, comparisons=changes.get(row.label, {}), cost_group=groups.get(row.label, "")) for row in rows]


def _changes(rows: Sequence[Row], bases: Mapping[str, str]) -> dict[str, dict[str, Comparison]]:
    """label -> score -> comparison."""
    by_label = {row.label: row for row in rows}
    influences = {row.label: fid_influence(row.result.cell, row.result.store) for row in rows}
    found: dict[tuple[str, str], dict[str, Comparison]] = {}  # (base, score) -> label -> comparison
    for label, base in bases.items():
        if {label, base} <= by_label.keys():
            pair = by_label[label], by_label[base]
            for name, comparison in {**_paired(*pair), **_fid(*pair, influences[label], influences[base])}.items():
                found.setdefault((base, name), {})[label] = comparison
    changes: dict[str, dict[str, Comparison]] = {}
    for (_, name), family in found.items():
        for (label, comparison), p in zip(family.items(), holm([c.p for c in family.values()]), strict=True):
            changes.setdefault(label, {})[name] = replace(comparison, adjusted=p)
    return changes


def _paired(row: Row, base: Row) -> dict[str, Comparison]:
    """Of the scores beside the reference image that both rows have for every image, or are undefined for."""
    result = {}
    for name in row.paired.keys() & base.paired.keys():
        difference = row.paired[name] - base.paired[name] if np.isfinite(base.paired[name]).any() else np.empty(0)
        difference = difference[~np.isnan(difference)]
        if len(difference) > 1 and np.isfinite(difference).all():
            result[name] = comparison_of(float(difference.mean()), difference)
    return result


def _fid(row: Row, base: Row, own: tuple[str, np.ndarray] | None, other: tuple[str, np.ndarray] | None) -> dict[str, Comparison]:
    if own is None or other is None or own[0] != other[0] or len(own[1]) != len(other[1]):
        return {}
    name = own[0]
    return {name: comparison_of(row.scores[name].value - base.scores[name].value, own[1] - other[1])}


def comparison_of(change: float, differences: np.ndarray) -> Comparison:
    """The change of a mean, whose error is that of the mean of ``differences`` [N], N > 1. Without any spread p is 0 or 1."""
    from scipy.special import stdtr, stdtrit  # a fraction of a second that only a comparison needs

    n = len(differences)
    error = float(differences.std(ddof=1)) / n**0.5
    half = error * float(stdtrit(n - 1, (1 + LEVEL) / 2))
    p = 2 * float(stdtr(n - 1, -abs(change) / error)) if error > 0 else float(change == 0)
    return Comparison(Interval(change, change - half, change + half), p)


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for their number m (Holm 1979): of the k-th smallest the largest (m - j + 1) p_j for j <= k, at most 1."""
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1)
    return [float(value) for value in scaled[np.argsort(order, kind="stable")]]


def cost_groups(costs: Mapping[str, float]) -> dict[str, str]:
    """label -> letter, shared by rows whose costs are within 5 % of the cheapest of them; by rising cost. Rows alone have none."""
    groups: list[list[str]] = []
    for label in sorted(costs, key=lambda label: costs[label]):
        if groups and costs[label] <= SAME_COST * costs[groups[-1][0]]:
            groups[-1].append(label)
        else:
            groups.append([label])
    shared = [group for group in groups if len(group) > 1]
    return {label: _letters(k) for k, group in enumerate(shared) for label in group}


def _letters(k: int) -> str:
    """A .. Z, AA, AB .."""
    return (_letters(k // 26 - 1) if k >= 26 else "") + chr(ord("A") + k % 26)
