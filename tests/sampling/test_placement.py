import pytest

from iec.errors import ConfigError
from iec.sampling.placement import Placement


def test_each_kind():
    assert Placement("none").resolve(5) == frozenset()
    assert Placement("all_steps").resolve(5) == frozenset(range(5))
    assert Placement("first_step").resolve(5) == {0}
    assert Placement("first_last", fraction=0.1).resolve(20) == {0, 1, 18, 19}
    assert Placement("first_last", count=3).resolve(20) == {0, 1, 2, 17, 18, 19}
    assert Placement("first_last", fraction=0.01).resolve(10) == {0, 9}
    assert Placement("first_last", fraction=1.0).resolve(4) == frozenset(range(4))
    assert Placement("explicit", steps=(1, 3)).resolve(5) == {1, 3}


def test_the_counts_behind_table_5_of_the_paper():
    """DeepCache N = 10 of T = 100: 10 corrections everywhere, 2 at +-1/10, 1 at +-1/20."""
    refresh = range(0, 100, 10)
    assert len(Placement("all_steps").resolve(100, refresh)) == 10
    assert Placement("first_last", fraction=1 / 10).resolve(100, refresh) == {0, 90}
    assert Placement("first_last", fraction=1 / 20).resolve(100, refresh) == {0}
    assert Placement("explicit", steps=(5,)).resolve(100, refresh) == {5}
    assert Placement("all_steps", cached_steps="cached").resolve(100, refresh) == frozenset(range(100))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Placement("everywhere"), "choose one of none"),
        (lambda: Placement("first_last"), "needs iec.fraction"),
        (lambda: Placement("first_last", fraction=0.1, count=2), "not both"),
        (lambda: Placement("first_last", fraction=0.0), "outside"),
        (lambda: Placement("first_last", fraction=1.1), "outside"),
        (lambda: Placement("first_last", count=0), "at least 1"),
        (lambda: Placement("explicit"), "needs iec.steps"),
        (lambda: Placement("explicit", steps=(True,)), "whole numbers"),
        (lambda: Placement("all_steps", fraction=0.5), "does nothing with all_steps"),
        (lambda: Placement("all_steps", count=2), "does nothing with all_steps"),
        (lambda: Placement("first_step", steps=(1,)), "belongs to iec.placement=explicit"),
        (lambda: Placement(cached_steps="maybe"), "skip, cached, full"),
        (lambda: Placement(last_step="maybe"), "iec.last_step='maybe'; choose correct, skip"),
        (lambda: Placement("explicit", steps=(5,)).resolve(5), "0 .. 4"),
        (lambda: Placement("explicit", steps=(-1,)).resolve(5), "0 .. 4"),
    ],
)
def test_bad_placements_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
