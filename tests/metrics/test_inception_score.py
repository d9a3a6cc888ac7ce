import numpy as np
import pytest

from iec.errors import MetricError
from iec.metrics.inception_score import inception_score, inception_score_of_resamples, splits_for

draw = np.random.default_rng(0)


def one_hot(classes, num_classes, strength=200.0):
    return strength * np.eye(num_classes)[np.asarray(classes)]


def test_ends_of_the_range():
    assert inception_score(np.zeros((30, 7))) == pytest.approx(1.0, rel=1e-12)
    assert inception_score(one_hot(np.arange(70) % 7, 7)) == pytest.approx(7.0, rel=1e-12)


def test_two_classes_in_unequal_shares():
    """Certain predictions: IS = exp(entropy of the shares)."""
    expected = np.exp(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    assert inception_score(one_hot([0] * 5 + [1] * 15, 3)) == pytest.approx(expected, rel=1e-12)


def test_splits_are_averaged():
    logits = draw.standard_normal((21, 5))
    order = np.random.default_rng(3).permutation(21)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chunks = [p[order[:11]], p[order[11:]]]
    expected = np.mean([np.exp((c * np.log(c / c.mean(axis=0))).sum(axis=1).mean()) for c in chunks])
    assert inception_score(logits, splits=2, seed=3) == pytest.approx(expected, rel=1e-12)


def test_class_ordered_images_are_shuffled_before_they_are_split():
    """Ten ordered chunks hold 10 of 100 classes each: unshuffled they score 10."""
    ordered = one_hot(np.arange(2000) // 20, 100)
    assert inception_score(ordered, splits=10) > 70
    in_file_order = [inception_score(chunk, splits=1) for chunk in np.split(ordered, 10)]
    assert np.mean(in_file_order) == pytest.approx(10.0)


def test_default_splits():
    assert [splits_for(n) for n in (2, 4999, 10_000, 50_000)] == [1, 1, 2, 10]
    logits = draw.standard_normal((50, 4))
    assert inception_score(logits) == inception_score(logits, splits=1)
    assert inception_score(logits) == pytest.approx(inception_score(logits[::-1]), rel=1e-12)


def test_a_constant_added_to_the_logits_changes_nothing_even_when_large():
    logits = draw.standard_normal((20, 4))
    assert inception_score(logits + 1e4) == pytest.approx(inception_score(logits), rel=1e-9)


def test_counts_are_repeated_images():
    logits, counts = draw.standard_normal((6, 4)), np.array([[0, 3, 1, 0, 2, 0]])
    repeated = np.repeat(logits, counts[0], axis=0)
    assert inception_score_of_resamples(logits, counts, 1)[0] == pytest.approx(inception_score(repeated, 1), rel=1e-12)


@pytest.mark.parametrize(("logits", "splits"), [(np.full((4, 3), np.nan), 1), (np.zeros((1, 3)), 1), (np.zeros((4, 3)), 5)])
def test_refusals(logits, splits):
    with pytest.raises(MetricError):
        inception_score(logits, splits)
