"""The refresh lists of the original code (produced by running it), and what is refused."""

from itertools import pairwise

import pytest

from iec.efficiency.caching import centred, explicit, quadratic, uniform
from iec.errors import ConfigError

QUADRATIC = {
    20: (0, 5, 15, 27, 42, 59, 78, 98, 120, 144, 168, 194, 221),
    10: (0, 1, 5, 10, 15, 22, 29, 37, 45, 53, 63, 72, 83, 93, 104, 116, 127, 140, 152, 165, 178, 192, 206, 220, 235),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "interval"), [(100, 10), (100, 1), (250, 20), (7, 3), (5, 9)])
def test_uniform_refreshes_every_nth_step_from_the_first(steps, interval):
    found = uniform(steps, interval)
    assert found == {i for i in range(steps) if i % interval == 0}
    assert len(found) == -(-steps // interval)


@pytest.mark.parametrize("interval", QUADRATIC)
def test_quadratic_is_the_original_list(interval):
    assert quadratic(250, interval) == frozenset(QUADRATIC[interval])


def test_quadratic_merges_steps_that_truncate_to_the_same():
    assert len(quadratic(250, 5)) == 49
    assert quadratic(4, 10) == {0}


def test_centred_is_the_original_list():
    assert centred(50, 10, 15, 1.4) == {0, 5, 9, 13, 17, 21, 26, 31, 37, 43}


def test_centred_is_dense_around_its_centre():
    steps = sorted(centred(50, 10, 15, 1.4))
    gaps = [b - a for a, b in pairwise(steps)]
    assert min(gaps) == gaps[2] == steps[3] - steps[2] and max(gaps) == gaps[-1]


def test_centred_lowers_its_power_until_the_count_fits():
    """At 1.9 two of the steps coincide; at 1.88 they do not."""
    assert centred(50, 25, 10, 1.9) == centred(50, 25, 10, 1.88)
    assert len(centred(50, 25, 10, 1.9)) == 25
    assert len(centred(100, 10, 0, 1.5)) == 10  # a real root


def test_centred_without_a_fitting_power_says_so_and_fewer_refreshes_fit():
    with pytest.raises(ConfigError, match="Change the number of refreshes or the centre, or give the steps explicitly"):
        centred(20, 20, 10, 1.4)
    assert len(centred(20, 8, 10, 1.4)) == 8
    assert len(explicit(20, range(20))) == 20


def test_explicit_steps_are_taken_as_they_are():
    assert explicit(10, [7, 0, 3]) == {0, 3, 7}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(10, 0), "at least 1"),
        (lambda: uniform(0, 1), "at least 1"),
        (lambda: uniform(10, 2.0), "whole number"),
        (lambda: quadratic(10, True), "whole number"),
        (lambda: quadratic(10, 2, 1.0), "above 1"),
        (lambda: quadratic(10, 2, float("nan")), "above 1"),
        (lambda: centred(10, 11, 3, 1.4), "count of 1 .. 10"),
        (lambda: centred(10, 3, 10, 1.4), "centre of 0 .. 9"),
        (lambda: explicit(10, [0, 10]), r"\[10\]"),
        (lambda: explicit(10, [0, -1]), r"\[-1\]"),
        (lambda: explicit(10, [0, 1.5]), r"\[1.5\]"),
        (lambda: explicit(10, [1, 2]), "add 0"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
