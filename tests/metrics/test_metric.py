"""A metric is one object: a file of a few lines and its registration are all that a new one takes."""

import dataclasses

import numpy as np
import pytest

from iec.errors import ConfigError, MetricError
from iec.metrics.extractors.features import extract
from iec.metrics.fid import FID
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.interval import Interval
from iec.metrics.metric import Metric, Resamples, Rules
from iec.metrics.protocol import Protocol
from iec.metrics.references.reference import Reference
from iec.metrics.scores import METRICS, available, register, require_images, score_features


def measure(x, real, resamples, rules):
    """Mean Euclidean distance to the mean of the real images' features."""
    distances = np.linalg.norm(x - real.mean, axis=1)
    return Interval.centred(resamples.counts @ distances / len(x))


DISTANCE = Metric("distance", "distance ({})", measure, part="pooled", least=lambda rules, reference: 5)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("iec.metrics.scores.METRICS", dict(METRICS))
    return register(DISTANCE)


@pytest.fixture
def toy(tiny, random_images):
    """(features, reference, extractor)"""
    extractor = tiny()
    features = extract(random_images, extractor)
    provenance = {"n": 40, "resolution": 8, "extractor": extractor.identity, "extractor_hash": extractor.hash}
    return features, Reference(GaussianStatistics.of(features.pooled), None, None, provenance), extractor


def test_a_metric_of_ones_own_is_scored_like_any_other(registered, toy):
    features, reference, extractor = toy
    score = score_features(features, reference, "Tiny", ("distance", "is"), bootstrap=50)["distance"]
    expected = np.linalg.norm(features.pooled - features.pooled.astype(np.float64).mean(axis=0), axis=1)
    assert score.value == pytest.approx(expected.mean(), rel=1e-12) and score.low < score.value < score.high
    assert (score.label, score.interval, score.n, score.higher_is_better) == ("distance (Tiny)", "bootstrap", 40, False)
    by_protocol = Protocol("p", "P", lambda device: extractor, ("distance",)).score(features, reference, bootstrap=50)
    assert by_protocol["distance"].label == "distance (P)" and tuple(by_protocol["distance"]) == tuple(score)


def test_what_it_needs_is_known_beforehand(registered, toy):
    reference = dataclasses.replace(toy[1], pooled=None)
    assert available(("distance", "is"), reference) == ("is",)
    with pytest.raises(MetricError, match="its part 'pooled'.*distance compares"):
        score_features(toy[0], reference, "Tiny", ("distance",))
    require_images(["distance"], 5, toy[1], Rules())
    with pytest.raises(MetricError, match="4 images are too few for distance, which needs 5"):
        require_images(["distance"], 4, toy[1], Rules())


def test_a_name_belongs_to_one_metric(registered):
    assert register(registered) is registered
    with pytest.raises(ConfigError, match="a score 'fid' already"):
        register(dataclasses.replace(DISTANCE, name="fid"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "pixels"}, "unknown features 'pixels'; choose one of pooled, spatial, logits"),
        ({"part": "mean"}, "unknown part 'mean'; choose one of pooled, spatial, kid"),
        ({"label": "distance"}, "no place for the protocol"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(FID, **change)


def test_the_first_of_the_resamples_is_the_images_themselves():
    drawn = Resamples.draw(7, 3, seed=0)
    assert len(drawn) == 3 and drawn.counts.shape == (4, 7)
    assert np.array_equal(drawn.counts[0], np.ones(7)) and (drawn.counts.sum(axis=1) == 7).all()
    assert len(Resamples.draw(7, 0, seed=0)) == 0
