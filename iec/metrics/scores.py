"""Features in, scores with intervals out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from iec.errors import ConfigError, MetricError
from iec.metrics.cmmd import CMMD
from iec.metrics.extractors.features import Extractor, Features, extract
from iec.metrics.fid import FID, SFID
from iec.metrics.inception_score import INCEPTION_SCORE
from iec.metrics.infinity import FID_INFINITY
from iec.metrics.interval import LEVEL, Interval
from iec.metrics.kid import KID
from iec.metrics.metric import OWN_RULES, PARTS, Metric, Resamples, Rules
from iec.metrics.precision_recall import PRECISION, RECALL
from iec.metrics.references.reference import Reference

METRICS: dict[str, Metric] = {m.name: m for m in (FID, KID, INCEPTION_SCORE, SFID, PRECISION, RECALL, FID_INFINITY, CMMD)}
"""All scores of features, by name; `register` adds one."""
NAMES = ("fid", "kid", "is", "sfid")
"""The scores that are given unless others are asked for."""


def register(metric: Metric) -> Metric:
    """Make a metric known by its name. Raises `ConfigError` if another has that name."""
    if METRICS.setdefault(metric.name, metric) is not metric:
        raise ConfigError(f"There is a score {metric.name!r} already; give this one another name.")
    return metric


@dataclass(frozen=True, kw_only=True)
class Score(Interval):
    """One score of n images, as it is printed, with its 95 % interval for another draw of n images.

    resamples: as asked for. interval: how it was found, ``bootstrap`` (`iec.metrics.interval`), ``linear``
    (`iec.metrics.influence`) or ``none``.
    """

    name: str
    label: str
    n: int
    higher_is_better: bool
    resamples: int
    seed: int
    level: float = LEVEL
    interval: str = "bootstrap"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, the name first."""
        return {"name": self.name, "label": self.label, **asdict(self)}


def score(
    images: np.ndarray | Iterable[np.ndarray],
    reference: Reference,
    extractor: Extractor,
    names: Sequence[str] = NAMES,
    bootstrap: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    rules: Rules = OWN_RULES,
) -> dict[str, Score]:
    """Scores of uint8 images, [N, H, W, 1 or 3] or an iterable of such blocks: `extract`, then `score_features`."""
    require_parts(names, reference)
    return score_features(extract(images, extractor, progress), reference, extractor.label, names, bootstrap, seed, rules)


def score_features(
    features: Features,
    reference: Reference,
    label: str,
    names: Sequence[str] = NAMES,
    bootstrap: int = 200,
    seed: int = 0,
    rules: Rules = OWN_RULES,
) -> dict[str, Score]:
    """Scores by name, in the order of ``names``; the same digits for the same input.

    label: printed in each score's label. bootstrap: resamples for the intervals, 0 for no intervals of any kind. seed: theirs, and
    of the subsets of fid_inf. Raises `MetricError` for unknown names, scores that the reference has no part for, NaN or constant
    features, features of another extractor or resolution than the reference's, and fewer images than `require_images` says.
    """
    require_parts(names, reference)
    _check(features, reference)
    n = len(features)
    require_images(names, n, reference, rules)
    resamples = Resamples.draw(n, bootstrap, seed)
    scores = {}
    for metric in map(METRICS.__getitem__, names):
        real = None if metric.part is None else getattr(reference, metric.part)
        measured = metric.measure(getattr(features, metric.features), real, resamples, rules)
        scores[metric.name] = Score(
            *measured,
            name=metric.name,
            label=metric.label.format(label),
            n=n,
            higher_is_better=metric.higher_is_better,
            resamples=bootstrap,
            seed=seed,
            interval="none" if not measured.known else "linear" if rules.linear and metric.linear else "bootstrap",
        )
    return scores


def available(names: Sequence[str], reference: Reference) -> tuple[str, ...]:
    """Those of ``names`` that the reference has the part for."""
    return tuple(name for name in names if (part := METRICS[name].part) is None or getattr(reference, part) is not None)


def require_parts(names: Sequence[str], reference: Reference) -> None:
    """Raises `MetricError` for an unknown score, or one that the reference has no part for, naming the part and what gives it."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise MetricError(f"Unknown score {unknown[0]!r}; choose from {', '.join(METRICS)}.")
    for name in names:
        part = METRICS[name].part
        if part is not None and getattr(reference, part) is None:
            raise MetricError(
                f"The reference has no {PARTS[part]} (its part '{part}'), which {name} compares with. A reference "
                "made from the real images has all parts (python -m iec.metrics.references); or leave this score out."
            )


def require_images(names: Sequence[str], n: int, reference: Reference, rules: Rules) -> None:
    """Raises `MetricError` for a score that n images, or the real ones, are too few for. To be called before they are made."""
    real = 0 if reference.kid is None else len(reference.kid)
    for metric in map(METRICS.__getitem__, names):
        if n < (least := metric.least(rules, reference)):
            raise MetricError(
                f"{n} images are too few for {metric.name}, which needs {least} by these rules. Use more images, other scores, or "
                "the protocol 'inception'."
            )
        if real < (least := metric.least_real(rules)):
            raise MetricError(
                f"The reference holds features of {real} real images, {metric.name} needs {least} by these rules. Make it from "
                "more (python -m iec.metrics.references), or use other scores, or the protocol 'inception'."
            )


def _check(features: Features, reference: Reference) -> None:
    if features.extractor != reference.extractor_hash:
        raise MetricError("These features and the reference come from different extractors; extract the features again.")
    if features.resolution != reference.resolution:
        raise MetricError(
            f"These images are {features.resolution} pixels wide, the reference's {reference.resolution}; use the "
            "reference of this data set and resolution."
        )
    if len(features) < 2:
        raise MetricError(f"{len(features)} image(s) cannot be scored; use at least 2.")
    for value in (features.pooled, features.spatial, features.logits):
        if value.ndim != 2 or len(value) != len(features):
            raise MetricError(f"Features of {len(features)} images have shape {value.shape}; extract them again.")
        if not np.isfinite(value).all():
            raise MetricError("Features hold NaN or infinity; check the images and the extractor's weights.")
        if value.shape[1] and (value == value[0]).all():
            raise MetricError(f"All {len(features)} images have the same features; look at them, the run is broken.")
