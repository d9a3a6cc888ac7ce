"""What is drawn of a row: taken from the row, kept in table.json, and read from there, so that plots can be drawn again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from iec.efficiency.cost import CallCost
from iec.efficiency.integer import ARITHMETIC
from iec.metrics.interval import Interval, mean_interval
from iec.metrics.paired import mean_of_pairs
from iec.metrics.scores import METRICS
from iec.tables.rows import Row, paired_directions


@dataclass(frozen=True)
class Curve:
    """A mean over images against the state, [T + 1], or the step, and the ends of its 95 % interval; None where it is not known."""

    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @classmethod
    def of(cls, values: np.ndarray) -> "Curve":
        """values: [n, T + 1], or a column for each step."""
        return cls(values.mean(axis=0), *mean_interval(values))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Curve":
        return cls(**{name: np.array(part) for name, part in value.items() if part is not None})

    @property
    def interval(self) -> list[list[float]] | None:
        """[low, high], JSON values."""
        return None if self.low is None or self.high is None else [self.low.tolist(), self.high.tolist()]

    def as_json(self) -> dict[str, Any]:
        return {name: None if part is None else part.tolist() for name, part in vars(self).items()}


@dataclass(frozen=True)
class Measured:
    """scores: finite ones. changes: of the scores, see `changes_of`. higher_is_better: of each score. cost:
    of one image. distance: relative to the reference trajectory; difference: of the distance to that of the row without correction,
    image by image; ``traced``: the images of both. floors: of scores, what as many real images score, where it is known. seconds:
    measured, of one image; None in older files. arithmetic: see `Technique.arithmetic`. noise: see `iec.tables.noise`.
    """

    label: str
    images: int
    scores: dict[str, Interval]
    higher_is_better: dict[str, bool]
    cost: CallCost | None
    distance: Curve | None
    difference: Curve | None
    traced: int
    changes: dict[str, Interval] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    arithmetic: str = ""
    noise: Curve | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Measured":
        """An entry of table.json. Older ones have no protocols beside, floors or noise, and do not say whose seconds are real."""
        records = [record for record in (entry["record"], *entry.get("beside", ())) if record is not None]
        kinds = [(name, kind) for record in records for name, kind in record["scores"].items()]
        names = {kind["label"]: name for name, kind in kinds}
        mean, interval, difference = (
            entry[key] for key in ("relative_distance_mean", "relative_distance_interval", "paired_difference")
        )
        return cls(
            label=entry["label"],
            images=entry["manifest"]["num_images"],
            scores=_ordered({name: Interval(**score) for name, score in entry["scores"].items()}, names),
            higher_is_better={kind["label"]: kind["higher_is_better"] for _, kind in kinds} | paired_directions(),
            cost=None if entry["cost"] is None else CallCost(**entry["cost"]),
            distance=None if mean is None else Curve(np.array(mean), *map(np.array, interval or ())),
            difference=None if difference is None else Curve.from_json(difference),
            traced=entry["trace_images"],
            changes=changes_in(entry),
            floors=entry.get("floors", {}),
            seconds=entry["manifest"]["seconds_per_image"] if "arithmetic" in entry else None,
            arithmetic=entry.get("arithmetic", ""),
            noise=None if entry.get("noise_ratio") is None else Curve.from_json(entry["noise_ratio"]),
        )

    def as_json(self) -> dict[str, Any]:
        """The part of an entry of table.json that a plot needs and the cell does not hold."""
        return {
            "cost": None if self.cost is None else asdict(self.cost),
            "scores": _ends(self.scores),
            "changes": _ends(self.changes),
            "relative_distance_mean": None if self.distance is None else self.distance.mean.tolist(),
            "relative_distance_interval": None if self.distance is None else self.distance.interval,
            "paired_difference": None if self.difference is None else self.difference.as_json(),
            "trace_images": self.traced,
            "floors": self.floors,
            "arithmetic": self.arithmetic,
            "noise_ratio": None if self.noise is None else self.noise.as_json(),
        }


def simulated(arithmetic: str) -> bool:
    """Whether seconds say nothing of integer kernels. arithmetic: see `Technique.arithmetic`."""
    return arithmetic == ARITHMETIC["simulated"]


def _ends(values: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(("value", "low", "high"), value, strict=True)) for name, value in values.items()}


def _ordered(scores: dict[str, Interval], names: Mapping[str, str]) -> dict[str, Interval]:
    """In the order of `METRICS`, those of one name side by side, others last: files keep their keys in alphabetical order. names:
    of the scores by label, the protocol's before those of the protocols beside it.
    """
    ranks, places = list(METRICS), list(names)

    def key(label: str) -> tuple[int, int]:
        name = names.get(label, "")
        return (ranks.index(name), places.index(label)) if name in ranks else (len(ranks), 0)

    return dict(sorted(scores.items(), key=lambda item: key(item[0])))


def measured(rows: Sequence[Row], bases: Mapping[str, str]) -> list[Measured]:
    """bases: corrected row -> the row without correction."""
    errors = {row.label: row.errors for row in rows if row.errors is not None}
    by_label = {row.label: row for row in rows}
    finite = {row.label: {name: score for name, score in row.scores.items() if np.isfinite(score.value)} for row in rows}
    differences = {label: errors[label] - errors[base] for label, base in bases.items() if {label, base} <= errors.keys()}
    return [
        Measured(
            label=row.label,
            images=row.result.manifest.num_images,
            scores=_ordered(finite[row.label], {score.label: score.name for score in row.result.scores}),
            higher_is_better=row.higher_is_better,
            cost=row.image_cost,
            distance=None if row.errors is None else Curve.of(row.errors),
            difference=Curve.of(differences[row.label]) if row.label in differences else None,
            traced=0 if row.errors is None else len(row.errors),
            changes=changes_of(row, by_label.get(bases.get(row.label, ""))),
            floors=row.result.floors,
            seconds=row.result.manifest.seconds_per_image,
            arithmetic=row.result.cell.technique.arithmetic,
            noise=None if row.noise is None else Curve.of(row.noise),
        )
        for row in rows
    ]


def changes_in(entry: Mapping[str, Any]) -> dict[str, Interval]:
    """Score -> its change, of an entry of table.json. Where the score is compared in pairs, that change: its interval is narrower
    than that of a change as of independent runs.
    """
    compared = {name: comparison["change"] for name, comparison in entry.get("comparisons", {}).items()}
    return {name: Interval(**ends) for name, ends in {**entry.get("changes", {}), **compared}.items()}


def changes_of(row: Row, base: Row | None) -> dict[str, Interval]:
    """Those that the table compares, and from ``base``, if there is one, those of the other finite scores that both have: image by
    image for paired ones, as of independent runs (too wide) for the others.
    """
    compared = {name: comparison.change for name, comparison in row.comparisons.items()}
    if base is None:
        return compared
    common = [name for name in row.scores if name in base.scores]
    finite = [name for name in common if np.isfinite(row.scores[name].value) and np.isfinite(base.scores[name].value)]
    paired = row.paired.keys() & base.paired.keys()
    changes = {
        name: mean_of_pairs(row.paired[name] - base.paired[name]) if name in paired else row.scores[name] - base.scores[name]
        for name in finite
    }
    return changes | compared
