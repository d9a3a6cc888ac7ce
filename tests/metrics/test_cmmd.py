import numpy as np
import pytest

from iec.errors import MetricError
from iec.metrics.cmmd import CMMD, SCALE, cmmd_of_resamples
from iec.metrics.metric import OWN_RULES, Resamples
from iec.metrics.scores import METRICS

draw = np.random.default_rng(0)


def kernels(x, y):
    """exp(-|x - y|^2 / (2 10^2)) of the directions, entry by entry."""
    x, y = (value / np.sqrt((value**2).sum(1))[:, None] for value in (x, y))
    return np.array([[np.exp(-((a - b) ** 2).sum() / 200) for b in y] for a in x])


def off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)].mean()


def cmmd(x, y):
    return cmmd_of_resamples(x, y, np.ones((1, len(x))))[0]


def test_it_is_the_unbiased_estimate_of_the_paper_and_the_authors_code_adds_the_diagonals():
    x, y = draw.standard_normal((7, 5)), draw.standard_normal((9, 5)) + 1
    xx, yy, xy = kernels(x, x), kernels(y, y), kernels(x, y)
    assert cmmd(x, y) == pytest.approx(SCALE * (off_diagonal(xx) + off_diagonal(yy) - 2 * xy.mean()), rel=1e-9)
    of_their_code = SCALE * (xx.mean() + yy.mean() - 2 * xy.mean())
    added = SCALE * ((1 - off_diagonal(xx)) / 7 + (1 - off_diagonal(yy)) / 9)
    assert of_their_code == pytest.approx(cmmd(x, y) + added, rel=1e-9)


def test_two_directions_at_a_right_angle_and_one_direction_of_any_length():
    one, other = np.tile([3.0, 0.0], (4, 1)), np.tile([0.0, 5.0], (3, 1))
    assert cmmd(one, other) == pytest.approx(2000 * (1 - np.exp(-2 / 200)), rel=1e-12)
    assert cmmd(one, one * np.arange(1, 5)[:, None]) == pytest.approx(0, abs=1e-9)


def test_it_is_unbiased_where_both_sides_have_one_distribution():
    values = [cmmd(draw.standard_normal((10, 4)), draw.standard_normal((12, 4))) for _ in range(1000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(1000) and min(values) < 0


def test_a_resample_leaves_out_pairs_with_a_copy_and_the_interval_holds_the_value():
    x, y = draw.standard_normal((6, 4)), draw.standard_normal((5, 4)) + 2
    picked, counts = [0, 0, 2, 3, 4, 4], np.array([[2, 0, 1, 1, 2, 0]])
    own = np.mean([kernels(x, x)[i, j] for i in picked for j in picked if i != j])
    expected = own + off_diagonal(kernels(y, y)) - 2 * kernels(x, y)[picked].mean()
    assert cmmd_of_resamples(x, y, counts)[0] == pytest.approx(SCALE * expected, rel=1e-9)
    interval = CMMD.measure(x, y, Resamples.draw(6, 20, 0), OWN_RULES)
    assert interval.value == pytest.approx(cmmd(x, y), rel=1e-9) and interval.low < interval.value < interval.high
    assert METRICS["cmmd"] is CMMD and not CMMD.higher_is_better


@pytest.mark.parametrize("x", [np.zeros((3, 2)), np.full((3, 2), np.inf), np.ones((1, 2)), np.ones((3, 4))])
def test_vectors_without_a_direction_and_other_shapes_are_refused(x):
    with pytest.raises(MetricError, match=r"NaN or infinity|CMMD needs \[N, d\]"):
        cmmd(x, np.eye(2))
