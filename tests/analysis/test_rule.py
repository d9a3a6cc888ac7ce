"""The threshold, its error rate, and its test on another model."""

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from iec.analysis.rule import ErrorRate, Pair, errors_of, rank_correlation, threshold, transfers, wilson
from iec.errors import ConfigError
from iec.metrics.interval import Interval

PAYS, COSTS, UNCLEAR = Interval(1, 0.5, 1.5), Interval(-1, -1.5, -0.5), Interval(0.3, -0.1, 0.7)


def pair(model, value, gain, images=(0.0, 0.0)):
    return Pair(model, f"{value}", gain, {"propagated": value + np.array(images)})


def test_wilsons_interval_is_the_one_of_scipy_and_of_the_book():
    for count, n in [(0, 10), (3, 10), (10, 10), (1, 1), (17, 60)]:
        book = binomtest(count, n).proportion_ci(0.95, "wilson")
        np.testing.assert_allclose(tuple(wilson(count, n)), (count / n, book.low, book.high), atol=1e-12)
    assert tuple(wilson(0, 10))[2] == pytest.approx(0.2775, abs=1e-4)  # z^2 / (n + z^2)
    assert str(ErrorRate(3, 10)) == "3 of 10, 30 % [11, 60]"


def test_no_other_threshold_makes_fewer_errors():
    draw = np.random.default_rng(0)
    for _ in range(200):
        x, pays = draw.integers(-4, 5, size=draw.integers(1, 9)).astype(float), None
        pays = draw.random(len(x)) < 0.5
        wrong = [int(((x > c) != pays).sum()) for c in (*np.arange(-5, 6) + 0.5, -np.inf, np.inf)]
        assert ((x > threshold(x, pays)) != pays).sum() == min(wrong)


def test_of_thresholds_with_as_few_errors_the_one_with_the_widest_gap_is_taken():
    assert threshold([-3, -1, 4, 5], [False, False, True, True]) == 1.5
    assert threshold([0, 1, 2, 9], [False, True, False, True]) == 5.5  # 0.5 makes one error, too
    assert threshold([-2, 8, 12], [False, False, False]) == np.inf
    assert threshold([-2, 8, 12], [True, True, True]) == -np.inf
    assert threshold([-np.inf, 2, 3], [False, False, True]) == 2.5


def test_a_change_that_cannot_be_told_from_0_does_not_pay():
    assert [pair("a", 0, gain).pays for gain in (PAYS, COSTS, UNCLEAR)] == [True, False, False]


def test_a_rule_is_tested_on_the_other_model_with_its_own_threshold():
    pairs = [pair("a", -2, COSTS), pair("a", 4, PAYS), pair("b", -1, COSTS), pair("b", 0.5, PAYS), pair("b", 2, PAYS)]
    first, second = transfers(pairs, "propagated", 2)
    assert (first.fitted_on, first.tested_on, first.c) == ("a", "b", 1.0)
    assert (first.fitted, first.tested, first.untuned) == (ErrorRate(0, 2), ErrorRate(1, 3), ErrorRate(0, 3))
    assert (second.c, second.tested) == (-0.25, ErrorRate(0, 2))
    assert errors_of(pairs, "propagated", np.inf) == ErrorRate(3, 5) and errors_of(pairs, "propagated", -np.inf) == ErrorRate(2, 5)


def test_one_model_alone_is_tested_on_itself():
    (only,) = transfers([pair("a", -2, COSTS), pair("a", 4, PAYS)], "propagated", 1)
    assert only.fitted_on == only.tested_on == "a" and only.fitted == only.tested


def test_fewer_images_are_the_first_of_those_that_were_measured():
    assert pair("a", 1, PAYS, (1.0, 4.0)).predicted("propagated", 1) == 2
    assert pair("a", 1, PAYS, (1.0, 4.0)).predicted("propagated") == 3.5


def test_a_threshold_of_nothing_is_refused():
    for values, pays in (([], []), ([np.nan], [True])):
        with pytest.raises(ConfigError, match="Measure more of them"):
            threshold(values, pays)


def test_the_rank_correlation_is_spearmans():
    draw = np.random.default_rng(0)
    values, gains = draw.normal(size=7), draw.normal(size=7)
    pairs = [pair("a", value, Interval(gain)) for value, gain in zip(values, gains, strict=True)]
    assert rank_correlation(pairs, "propagated") == pytest.approx(spearmanr(values, gains).statistic)
    assert np.isnan(rank_correlation(pairs[:1], "propagated"))
