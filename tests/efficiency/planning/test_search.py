"""The search finds the best choice where all can be tried, spends what it may, and goes on where it was killed."""

import json
import os
import random
import signal
from dataclasses import replace
from itertools import combinations

import pytest

from iec.efficiency.planning.search import Evaluations, search
from iec.efficiency.planning.space import Choice, Space
from iec.errors import ConfigError
from iec.sampling.network import Calls

GRID = (0.3, 0.5, 1.0)


def rugged(seed):
    """An objective in which every set of steps is worth something of its own, beside a smooth part."""

    def value(choice):
        own = random.Random(f"{seed} {choice.key}").random()
        smooth = sum(1 / (1 + abs(i - 4)) for i in choice.refresh) + sum(i / 9 for i in choice.corrected)
        return 10 - smooth + 0.3 * own - (0.2 * choice.lam if choice.corrected else 0)

    return value


def refreshes(steps, count):
    return [frozenset({0, *rest}) for rest in combinations(range(1, steps), count - 1)]


def everything(space, calls, corrections=None):
    """All choices of so many calls."""
    for extra in range(calls) if corrections is None else (corrections,):
        for refresh in refreshes(space.steps, calls - extra):
            places = sorted(space.correctable & refresh if space.on_refresh else space.correctable)
            for corrected in combinations(places, extra):
                for lam in space.lambdas if extra else space.lambdas[:1]:
                    yield Choice(refresh, frozenset(corrected), lam)


def first(space, calls, corrections):
    return next(everything(space, calls, corrections))


SPACES = {
    "refreshes alone": (Space(9), 4, 0),
    "corrections of refreshes": (Space(7, correctable=frozenset(range(6)), lambdas=GRID), 5, 2),
    "corrections anywhere": (Space(6, correctable=frozenset(range(5)), on_refresh=False, lambdas=GRID), 4, 1),
    "any split": (Space(6, split=True, correctable=frozenset(range(6)), lambdas=GRID), 4, None),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_what_brute_force_finds(name, seed):
    space, calls, corrections = SPACES[name]
    every, objective = list(everything(space, calls, corrections)), rugged(seed)
    evaluate = Evaluations(objective, limit=20 * len(every))
    start = replace(first(space, calls, corrections or 0), lam=space.lambdas[0])
    found = search(space, [start], evaluate, seed)
    assert objective(found) == min(objective(choice) for choice in every)
    assert set(evaluate.values) <= {choice.key for choice in every}  # the budget is respected on the way


@pytest.mark.parametrize("name", SPACES)
def test_moves_stay_in_the_space_and_reach_all_of_it(name):
    space, calls, corrections = SPACES[name]
    every = {choice.key for choice in everything(space, calls, corrections)}
    rng, choice, met = random.Random(0), first(space, calls, corrections or 0), set()
    for _ in range(60 * len(every)):
        choice = space.neighbour(choice, rng)
        met.add(choice.key)
        assert space.holds(choice)
    assert met == every
    near = {other.key for other in space.near(choice)}
    assert near < every and choice.key not in near


def test_a_search_is_the_same_for_the_same_seed_and_stays_within_its_evaluations():
    runs = []
    for seed in (1, 1, 2):
        evaluate = Evaluations(rugged(0), limit=40)
        found = search(Space(30), [Choice(frozenset(range(0, 30, 5)))], evaluate, seed)
        runs.append((found, list(evaluate.values)))
        assert len(evaluate.values) == 40
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_the_objective_does_not_matter(scale):
    plain, scaled = (Evaluations(lambda choice, s=s: s * rugged(0)(choice), limit=40) for s in (1.0, scale))
    found = [search(Space(30), [Choice(frozenset(range(0, 30, 5)))], evaluate, 1) for evaluate in (plain, scaled)]
    assert found[0] == found[1]
    assert list(plain.values) == list(scaled.values)


def test_an_objective_that_cannot_be_improved_ends_the_search():
    evaluate = Evaluations(lambda choice: 0.0, limit=400)
    start = Choice(frozenset({0, 3}))
    assert search(Space(6), [start], evaluate, 0) == start


@pytest.mark.parametrize("killed_after", [1, 17, 39])
def test_a_killed_search_goes_on_to_the_same_choice_and_asks_for_nothing_twice(tmp_path, killed_after):
    path, starts = tmp_path / "evaluations.json", [Choice(frozenset(range(0, 30, 5)))]
    whole = search(Space(30), starts, Evaluations(rugged(0), limit=40), 5)

    def searched(dies_after):
        calls = Calls()

        def objective(choice):
            if calls.full == dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.full += 1
            return rugged(0)(choice)

        evaluate = Evaluations(objective, 40, calls, path)
        return search(Space(30), starts, evaluate, 5), calls

    if (child := os.fork()) == 0:
        searched(dies_after=killed_after)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(json.loads(path.read_text())["values"]) == killed_after
    found, calls = searched(dies_after=None)
    assert found == whole
    assert calls.full == 40  # all attempts together: nothing was computed twice


def test_a_damaged_file_of_values_is_made_again(tmp_path):
    path = tmp_path / "evaluations.json"
    path.write_text('{"values": {"0 3": 1.0}, "cal')
    assert Evaluations(rugged(0), 10, path=path).stored == {}


def test_a_start_outside_of_the_space_and_too_few_evaluations_are_refused():
    for start in (Choice(frozenset({1})), Choice(frozenset({0}), frozenset({0})), Choice(frozenset({0, 9}))):
        with pytest.raises(ConfigError, match="cannot start from"):
            search(Space(9), [start], Evaluations(rugged(0), 10), 0)
    with pytest.raises(ConfigError, match="fewer than the 2 schedules"):
        search(Space(9), [Choice(frozenset({0, i})) for i in (1, 2)], Evaluations(rugged(0), 1), 0)


def test_choices_that_make_equal_images_have_one_key_and_the_first_difference_is_found():
    plain = Choice(frozenset({0, 4, 7}))
    assert plain.key == replace(plain, lam=1.0).key
    assert plain.first_difference(replace(plain, lam=1.0), 9) == 9
    assert plain.first_difference(Choice(frozenset({0, 5, 7})), 9) == 4
    corrected = replace(plain, corrected=frozenset({7}))
    assert corrected.first_difference(plain, 9) == corrected.first_difference(replace(corrected, lam=1.0), 9) == 7
