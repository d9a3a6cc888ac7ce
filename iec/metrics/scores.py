"""Features in, scores with intervals out."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from iec.errors import MetricError
from iec.metrics.bootstrap import LEVEL, centred_interval, resample_counts
from iec.metrics.features import Extractor, Features, extract
from iec.metrics.frechet import FewSamplesWarning, GaussianStatistics, frechet_distance
from iec.metrics.inception_score import inception_score_of_resamples
from iec.metrics.kid import kid_of_resamples
from iec.metrics.reference import Reference

NAMES = ("fid", "kid", "is", "sfid")
LABELS = {"fid": "FID ({})", "kid": "KID ({})", "is": "IS ({})", "sfid": "sFID ({})"}


@dataclass(frozen=True)
class Score:
    """One score of n images, as it is printed.

    low, high: 95 % interval for another draw of n images (see `iec.metrics.bootstrap`); nan without resamples.
    """

    name: str
    label: str
    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool
    resamples: int
    seed: int
    level: float = LEVEL


def score(
    images: np.ndarray | Iterable[np.ndarray],
    reference: Reference,
    extractor: Extractor,
    names: Sequence[str] = NAMES,
    bootstrap: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Score]:
    """Scores of uint8 images, [N, H, W, 3] or an iterable of such blocks: `extract`, then `score_features`."""
    _check_names(names)
    return score_features(extract(images, extractor, progress), reference, extractor.label, names, bootstrap, seed)


def score_features(
    features: Features,
    reference: Reference,
    label: str,
    names: Sequence[str] = NAMES,
    bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores by name, in the order of ``names``; the same digits for the same input.

    label: the extractor's, printed in each score's label. bootstrap: resamples for the intervals, 0 for none. seed: theirs.
    Raises `MetricError` for unknown names, NaN or constant features, fewer than 2 images, or features of another extractor or
    resolution than the reference's.
    """
    _check_names(names)
    _check(features, reference)
    n = len(features)
    counts = np.concatenate([np.ones((1, n)), resample_counts(n, bootstrap, seed)]) if bootstrap else np.ones((1, n))
    scores = {}
    for name in names:
        value, *resampled = _values(name, features, reference, counts)
        low, high = centred_interval(float(value), np.array(resampled))
        text = LABELS[name].format(label)
        scores[name] = Score(name, text, float(value), low, high, n, name == "is", bootstrap, seed)
    return scores


def _values(name: str, features: Features, reference: Reference, counts: np.ndarray) -> np.ndarray:
    """The score of every row of counts [B, N], the first being all ones; [B]."""
    if name == "kid":
        return kid_of_resamples(features.pooled, reference.kid, counts)
    if name == "is":
        return inception_score_of_resamples(features.logits, counts)
    pooled = name == "fid"
    x = (features.pooled if pooled else features.spatial).astype(np.float64)
    real = reference.pooled if pooled else reference.spatial
    values = []
    for k, c in enumerate(counts):
        with warnings.catch_warnings():
            if k:  # the warning about few images is for the score, not for each of its resamples
                warnings.simplefilter("ignore", FewSamplesWarning)
            values.append(frechet_distance(GaussianStatistics.of(x, c), real))
    return np.array(values)


def _check_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise MetricError(f"Unknown score {unknown[0]!r}; choose from {', '.join(NAMES)}.")


def _check(features: Features, reference: Reference) -> None:
    if features.extractor != reference.extractor_hash:
        raise MetricError("These features and the reference come from different extractors; extract the features again.")
    if features.resolution != reference.resolution:
        raise MetricError(
            f"These images are {features.resolution} pixels wide, the reference's {reference.resolution}; use the "
            "reference of this data set and resolution."
        )
    if len(features) < 2:
        raise MetricError(f"{len(features)} image(s) cannot be scored; generate at least 2 (num_images=N).")
    for value in (features.pooled, features.spatial, features.logits):
        if value.ndim != 2 or len(value) != len(features):
            raise MetricError(f"Features of {len(features)} images have shape {value.shape}; extract them again.")
        if not np.isfinite(value).all():
            raise MetricError("Features hold NaN or infinity; check the images and the extractor's weights.")
        if (value == value[0]).all():
            raise MetricError(f"All {len(features)} images have the same features; look at them, the run is broken.")
