"""Features in, scores with intervals out."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from iec.errors import MetricError
from iec.metrics.extractors.features import Extractor, Features, extract
from iec.metrics.frechet import FewSamplesWarning, GaussianStatistics, frechet_distance
from iec.metrics.inception_score import CHUNKS, TORCH_FIDELITY_SPLITS, inception_score_of_chunks
from iec.metrics.infinity import SHARE, frechet_infinity
from iec.metrics.influence import linear_interval
from iec.metrics.interval import LEVEL, Interval, resample_counts
from iec.metrics.kid import SUBSET, kid_of_resamples, kid_of_subsets
from iec.metrics.precision_recall import NEIGHBOURS, precise, recalled
from iec.metrics.references.reference import Reference

NAMES = ("fid", "kid", "is", "sfid")
"""The scores that are given unless others are asked for."""
LABELS = {
    "fid": "FID ({})",
    "kid": "KID ({})",
    "is": "IS ({})",
    "sfid": "sFID ({})",
    "precision": "precision ({})",
    "recall": "recall ({})",
    "fid_inf": "FID at infinity ({})",
}
NEEDS = {"fid": "pooled", "fid_inf": "pooled", "sfid": "spatial", "kid": "kid", "precision": "kid", "recall": "kid"}
"""The part of the reference that a score compares with; the inception score needs none."""
PARTS = {"pooled": "statistics of pooled features", "spatial": "statistics of spatial features", "kid": "features of real images"}


@dataclass(frozen=True)
class Rules:
    """Where conventions differ in how features become scores.

    chunks: of the inception score, a name of `iec.metrics.inception_score.CHUNKS`. kid_subsets: random subsets of 1000 to average
    over; 0: all pairs. linear: intervals of Frechet distances by `iec.metrics.influence` instead of resampling.
    """

    chunks: str = "shuffled"
    kid_subsets: int = 0
    linear: bool = False


OWN_RULES = Rules()


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
    """Scores of uint8 images, [N, H, W, 3] or an iterable of such blocks: `extract`, then `score_features`."""
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
    counts = np.concatenate([np.ones((1, n)), resample_counts(n, bootstrap, seed)]) if bootstrap else np.ones((1, n))
    scores = {}
    for name in names:
        measured = _measure(name, features, reference, counts, seed, rules)
        scores[name] = Score(
            *measured,
            name=name,
            label=LABELS[name].format(label),
            n=n,
            higher_is_better=name in ("is", "precision", "recall"),
            resamples=bootstrap,
            seed=seed,
            interval="none" if not measured.known else "linear" if rules.linear and name in ("fid", "sfid") else "bootstrap",
        )
    return scores


def available(names: Sequence[str], reference: Reference) -> tuple[str, ...]:
    """Those of ``names`` that the reference has the part for."""
    return tuple(name for name in names if name not in NEEDS or getattr(reference, NEEDS[name]) is not None)


def require_parts(names: Sequence[str], reference: Reference) -> None:
    """Raises `MetricError` for an unknown score, or one that the reference has no part for, naming the part and what gives it."""
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        raise MetricError(f"Unknown score {unknown[0]!r}; choose from {', '.join(LABELS)}.")
    for name in names:
        if name not in available([name], reference):
            raise MetricError(
                f"The reference has no {PARTS[NEEDS[name]]} (its part '{NEEDS[name]}'), which {name} compares with. A reference "
                "made from the real images has all parts (scripts/prepare_reference.py); or leave this score out."
            )


def require_images(names: Sequence[str], n: int, reference: Reference, rules: Rules) -> None:
    """Raises `MetricError` for a score that n images, or the real ones, are too few for. To be called before they are made."""
    width = 0 if reference.pooled is None else len(reference.pooled.mean)
    least = {
        "is": TORCH_FIDELITY_SPLITS if rules.chunks == "torch_fidelity" else 2,
        "kid": SUBSET if rules.kid_subsets else 2,
        "recall": NEIGHBOURS + 1,
        "fid_inf": SHARE * (width + 1),
    }
    for name in names:
        if n < least.get(name, 2):
            raise MetricError(
                f"{n} images are too few for {name}, which needs {least.get(name, 2)} by these rules. Generate more "
                "(num_images=N), ask for other scores, or use metrics=inception."
            )
    real = 0 if reference.kid is None else len(reference.kid)
    for name, wanted in (("kid", least["kid"]), ("precision", NEIGHBOURS + 1)):
        if name in names and real < wanted:
            raise MetricError(
                f"The reference holds features of {real} real images, {name} needs {wanted} by these rules. Make it from more "
                "(scripts/prepare_reference.py), ask for other scores, or use metrics=inception."
            )


def _measure(name: str, features: Features, reference: Reference, counts: np.ndarray, seed: int, rules: Rules) -> Interval:
    """counts [B, N] are the resamples, the first of them all ones: the images themselves."""
    x = features.pooled
    if name in ("fid", "sfid"):
        x, real = (x, reference.pooled) if name == "fid" else (features.spatial, reference.spatial)
        assert real is not None  # require_parts
        return _frechet(x, real, counts, rules.linear)
    if name == "is":
        return Interval.centred(inception_score_of_chunks(features.logits, counts, CHUNKS[rules.chunks](len(features))))
    if name == "fid_inf":
        assert reference.pooled is not None
        return Interval(frechet_infinity(x, reference.pooled, seed))
    assert reference.kid is not None
    if name == "kid":
        if rules.kid_subsets:
            return Interval(float(kid_of_subsets(x, reference.kid, rules.kid_subsets).mean()))
        return Interval.centred(kid_of_resamples(x, reference.kid, counts))
    if name == "precision":  # the real images' balls are the same in every resample
        return Interval.centred(counts @ precise(x, reference.kid).astype(np.float64) / len(x))
    return Interval(float(recalled(x, reference.kid).mean()))  # a copy would be its image's nearest neighbour


def _frechet(x: np.ndarray, real: GaussianStatistics, counts: np.ndarray, linear: bool) -> Interval:
    if linear:
        own = GaussianStatistics.of(x)
        value = frechet_distance(own, real)
        return Interval(value, *linear_interval(value, x, own, real)) if len(counts) > 1 else Interval(value)
    values, x = [], x.astype(np.float64)
    for k, c in enumerate(counts):
        with warnings.catch_warnings():
            if k:  # the warning about few images is for the score, not for each of its resamples
                warnings.simplefilter("ignore", FewSamplesWarning)
            values.append(frechet_distance(GaussianStatistics.of(x, c), real))
    return Interval.centred(np.array(values))


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
