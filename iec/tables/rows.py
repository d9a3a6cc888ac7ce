"""The rows of a table: what is known about each finished cell, beside a reference cell from the same noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from iec.efficiency.cost import CallCost, Cost
from iec.errors import MetricError
from iec.metrics import paired as pairs
from iec.metrics.interval import Interval
from iec.metrics.references.floors import real_images
from iec.runs.runner import Result
from iec.tables.noise import noise_ratio

PSNR = pairs.PSNR.label
CALIBRATION, COST_GROUP = "calibration calls", "cost group"
"""Columns that are shown where a row has something in them."""


@dataclass(frozen=True)
class Comparison:
    """change: of a score from that of another row. p: of a change as large by chance. adjusted: for all that were compared."""

    change: Interval
    p: float
    adjusted: float = np.nan

    def __str__(self) -> str:
        low, high = (f"{end:+.3g}" for end in (self.change.low, self.change.high))
        return f"{self.change.value:+.3g} [{low}, {high}], p {'< 0.0001' if self.adjusted < 1e-4 else f'= {self.adjusted:.2g}'}"


@dataclass(frozen=True)
class Row:
    """One line of a table. scores, and the paired ones beside the reference row, as label -> interval. paired: the latter for each
    image, label -> [N]; those that are defined for half of the images or more. noise: see `iec.tables.noise`; None where it is not
    known. comparisons: of the scores with the row that it is compared with; cost_group: the letter of its group; see
    `iec.tables.comparison`.
    """

    label: str
    result: Result
    scores: dict[str, Interval]
    errors: np.ndarray | None
    """Relative distance to the reference trajectory, [n, T + 1]; None where the number of steps or of trajectories differs."""
    paired: dict[str, np.ndarray] = field(default_factory=dict)
    noise: np.ndarray | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    cost_group: str = ""

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """Of each of the scores."""
        return {score.label: score.higher_is_better for score in self.result.scores} | paired_directions()

    @property
    def image_cost(self) -> CallCost | None:
        """Of one image, from the measured calls; None where the technique does not tell."""
        cost = self.result.cost
        return None if cost is None else cost.per_image(self.result.manifest.calls_per_image)

    def texts(self) -> dict[str, str]:
        """Column -> formatted value."""
        manifest = self.result.manifest
        calls = manifest.calls_per_image
        corrections = calls["correction"] + calls["cached_correction"]
        cost, image, calibration = self.result.cost, self.image_cost, self.result.calibration_calls
        return {
            "": self.label,
            "N": str(manifest.num_images),
            "calls (full+cached+corr.)": f"{calls['total']:g} ({calls['full']:g}+{calls['cached']:g}+{corrections:g})",
            CALIBRATION: "" if calibration is None else str(calibration),
            "s / image": f"{manifest.seconds_per_image:.3f} {self.result.cell.technique.arithmetic}".rstrip(),
            **({} if cost is None or image is None else _cost(cost, image)),
            COST_GROUP: self.cost_group,
            **{name: _text(score) for name, score in self.scores.items()},
            **{f"change of {name}": str(change) for name, change in self.comparisons.items()},
        }


def paired_directions() -> dict[str, bool]:
    """label -> whether higher is better, of all paired scores."""
    return {metric.label: metric.higher_is_better for metric in pairs.PAIRED.values()}


def floor_lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A line for each data set and N among the rows, column -> formatted value: what as many real images score."""
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        reference, n = row.result.cell.card.reference, row.result.manifest.num_images
        if floors := row.result.floors:
            line = lines.setdefault((reference, n), {"": f"real images ({real_images(reference)})", "N": str(n)})
            line |= {name: _digits(value) for name, value in floors.items()}
    return list(lines.values())


def _digits(value: float) -> str:
    return np.format_float_positional(value, precision=4, unique=False, fractional=False, trim="k").rstrip(".")


def _cost(cost: Cost, image: CallCost) -> dict[str, str]:
    return {
        "weights (MB)": f"{cost.weight_bytes / 1e6:.2f}",
        "cache (KB / image)": f"{cost.cache_bytes / 1e3:.1f}" if cost.cache_bytes else "",
        "GMACs / image": _digits(image.macs / 1e9),
        "TBOPs / image": _digits(image.bops / 1e12),
    }


def _text(score: Interval) -> str:
    """Four significant digits."""
    if np.isinf(score.value):
        return "same images"
    value, low, high = (_digits(v) for v in score)
    return f"{value} [{low}, {high}]" if score.known else value


def _require_one_reference(results: dict[str, Result]) -> None:
    """Raises `MetricError` where rows of one data set were scored against different references or extractors."""
    seen: dict[tuple[str, str], tuple[str, tuple[str, str]]] = {}
    for label, result in results.items():
        for record in result.records:
            key = result.cell.card.reference, record.protocol
            scored_with = record.reference_hash, record.extractor_hash
            other, first = seen.setdefault(key, (label, scored_with))
            if first != scored_with:
                raise MetricError(
                    f"'{label}' and '{other}' were scored against different references or extractors. Run the table again with "
                    "--run."
                )


def build_rows(results: dict[str, Result], references: Sequence[str], paired: Sequence[str] = pairs.DEFAULT) -> list[Row]:
    """Scores and paired distances of every finished row, in the experiment's order. references: labels of rows that those of the
    same model and seed are paired with, see `paired_with`. paired: names of the paired scores, keys of
    `iec.metrics.paired.PAIRED`.
    """
    _require_one_reference(results)
    bases = paired_with(results, references)
    rows = []
    for label, result in results.items():
        reference = bases.get(label)
        base = None if reference is None else results[reference]
        scores = {score.label: Interval(*score) for score in result.scores}
        errors, values, noise = None, {}, None
        if base is not None and label != reference and result.cell.num_images == base.cell.num_images:
            values = _paired(result, base, paired)
            scores |= {name: pairs.mean_of_pairs(of_images) for name, of_images in values.items()}
            if both_traced(result, base):
                states, others = result.states(), base.states()
                errors = pairs.relative_distance(states, others)
                noise = noise_ratio(states, others, result.cell.sampler.timetable, base.cell.sampler.timetable)
        rows.append(Row(label, result, scores, errors, values, noise))
    return rows


def both_traced(result: Result, base: Result) -> bool:
    """Whether both kept the trajectories of the same images, step by step."""
    traces = {(run.cell.trace_images, len(run.cell.sampler.timetable)) for run in (result, base)}
    return len(traces) == 1 and result.cell.trace_images > 0


def paired_with(results: Mapping[str, Result], references: Sequence[str]) -> dict[str, str]:
    """Label of a row -> that of the row that it is paired with. Of those that are there and start from its noise, as rows of its
    model and seed do, it is the one of the same timetable, or the last.
    """
    cells = {label: result.cell for label, result in results.items()}
    there = [(name, cells[name]) for name in references if name in cells]
    found = {}
    for label, cell in cells.items():
        own = [name for name, other in there if (other.card.name, other.seed) == (cell.card.name, cell.seed)]
        alike = [name for name in own if cells[name].sampler.timetable.pairs == cell.sampler.timetable.pairs]
        if own:
            found[label] = (alike or own)[-1]
    return found


def _paired(result: Result, reference: Result, names: Sequence[str]) -> dict[str, np.ndarray]:
    """label -> [N], of those of the paired scores that are defined for half of the images or more."""
    values = pairs.paired(result.shards(), reference.shards(), [pairs.PAIRED[name] for name in names])
    return {pairs.PAIRED[name].label: found for name, found in values.items() if np.isnan(found).mean() <= 0.5}
