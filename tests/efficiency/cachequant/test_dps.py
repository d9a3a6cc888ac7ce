"""The dynamic program finds the cheapest schedule that keeps the bounds; distances are those of the features."""

from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from iec.efficiency.cachequant import FeatureDistances, cheapest_refreshes
from iec.errors import ConfigError, NonFiniteError

CASES = [(10, 2), (13, 2), (13, 3), (11, 4), (13, 5), (12, 5), (7, 7), (9, 1), (1, 1), (13, 12)]


def features(steps, images=2):
    return torch.randn(steps, images, 3, 2, 2).cumsum(0)


def distances(sequence, interval, batch=None):
    found = FeatureDistances(len(sequence), interval)
    for part in range(0, sequence.shape[1], batch or sequence.shape[1]):
        for i, feature in enumerate(sequence):
            found.add(i, feature[part : part + (batch or sequence.shape[1])])
    return found.table()


def cost(sequence, starts):
    """Total distance of every feature to that of its segment's start."""
    edges = [*starts, len(sequence)]
    return float(sum((sequence[a:b].double() - sequence[a].double()).abs().sum() for a, b in pairwise(edges)))


def allowed(starts, steps, interval):
    return all(-(-interval // 2) <= b - a <= 2 * interval for a, b in pairwise([*starts, steps]))


@pytest.mark.parametrize(("steps", "interval"), CASES)
def test_the_schedule_is_the_cheapest_of_all_that_keep_the_bounds(steps, interval):
    sequence = features(steps)
    found = sorted(cheapest_refreshes(distances(sequence, interval), interval))
    count = -(-steps // interval)
    every = [(0, *rest) for rest in combinations(range(1, steps), count - 1)]
    every = [starts for starts in every if allowed(starts, steps, interval)]
    assert tuple(found) == min(every, key=lambda starts: cost(sequence, starts))
    assert found[0] == 0 and len(found) == count and allowed(found, steps, interval)


@pytest.mark.parametrize(("steps", "interval"), [(40, 6), (50, 5), (60, 10)])
def test_the_schedule_is_that_of_the_published_recursion(steps, interval):
    """L(n, k) = min_j L(j, k-1) + D(j, n) over k lo <= n <= min(k hi, T) and lo <= n - j <= hi, written down as it stands."""
    sequence, lo, hi = features(steps).double(), -(-interval // 2), 2 * interval

    @cache
    def diameter(j, n):
        return sum(float((sequence[i] - sequence[j]).abs().sum()) for i in range(j, n))

    @cache
    def best(n, k):
        if k == 1:
            return (diameter(0, n), (0,)) if lo <= n <= hi else (float("inf"), ())
        options = [
            (best(j, k - 1)[0] + diameter(j, n), (*best(j, k - 1)[1], j))
            for j in range((k - 1) * lo, min((k - 1) * hi, steps) + 1)
            if lo <= n - j <= hi
        ]
        return min(options, default=(float("inf"), ()))

    expected = best(steps, -(-steps // interval))[1]
    assert tuple(sorted(cheapest_refreshes(distances(sequence, interval), interval))) == expected


def test_jumps_of_the_feature_become_refresh_steps():
    jumps = (0, 4, 7, 12, 15)
    levels = torch.repeat_interleave(torch.arange(5.0), torch.tensor([4, 3, 5, 3, 5]))
    sequence = levels.view(-1, 1, 1, 1, 1) + 0.01 * torch.randn(20, 2, 3, 2, 2)
    assert cheapest_refreshes(distances(sequence, 4), 4) == frozenset(jumps)


def test_of_equal_schedules_the_one_with_the_smallest_last_start_wins():
    assert cheapest_refreshes(np.zeros((6, 6)), 3) == {0, 2}
    assert cheapest_refreshes(np.zeros((4, 4)), 2) == {0, 1}


@pytest.mark.parametrize("steps", range(1, 31))
def test_every_interval_up_to_the_number_of_steps_has_a_schedule(steps):
    for interval in range(1, steps + 1):
        found = sorted(cheapest_refreshes(np.ones((steps, min(2 * interval, steps))), interval))
        assert len(found) == -(-steps // interval) and allowed(found, steps, interval)


def test_distances_are_those_of_the_features_and_do_not_depend_on_batches():
    sequence = features(7, images=5)
    whole, parts = distances(sequence, 2), distances(sequence, 2, batch=2)
    assert whole.shape == (7, 4)
    for j in range(7):
        for m in range(4):
            expected = float((sequence[j + m].double() - sequence[j]).abs().sum()) if j + m < 7 else 0.0
            assert whole[j, m] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_no_more_than_the_last_features_of_a_batch_are_held():
    found = FeatureDistances(50, 3)
    for i, feature in enumerate(features(50)):
        found.add(i, feature)
    assert len(found._recent) == 5


@pytest.mark.parametrize("interval", [0, 8, -1, 2.0, True])
def test_intervals_without_a_meaning_are_refused(interval):
    with pytest.raises(ConfigError, match=r"interval=.*1 \.\. 7"):
        cheapest_refreshes(np.zeros((7, 14)), interval)


def test_features_that_are_not_finite_are_refused():
    sequence = features(4)
    sequence[2, 0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        distances(sequence, 2)
