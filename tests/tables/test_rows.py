"""Which row a row is paired with."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from iec.tables.experiment import Experiment
from iec.tables.rows import both_traced, paired_with
from iec.tables.styles import bases


def result(model, steps, seed=0):
    timetable = SimpleNamespace(pairs=((steps, 0),))
    card, sampler = SimpleNamespace(name=model), SimpleNamespace(timetable=timetable)
    return SimpleNamespace(cell=SimpleNamespace(card=card, sampler=sampler, seed=seed))


def test_a_row_is_paired_with_the_reference_of_its_model_and_timetable_or_the_last_of_its_model():
    references = {"a, T=10": result("a", 10), "a, T=20": result("a", 20), "b, T=10": result("b", 10)}
    others = {"1": result("a", 10), "2": result("a", 20), "3": result("a", 50), "4": result("b", 20), "5": result("c", 10)}
    found = paired_with({**references, **others}, [*references, "not there"])
    assert {label: found.get(label) for label in others} == {
        "1": "a, T=10",
        "2": "a, T=20",
        "3": "a, T=20",
        "4": "b, T=10",
        "5": None,
    }
    assert all(found[label] == label for label in references)


def test_rows_of_another_seed_start_from_other_noise_and_are_not_paired():
    references = {"seed 0": result("a", 10), "seed 1": result("a", 10, seed=1)}
    others = {"1": result("a", 10), "2": result("a", 50, seed=1), "3": result("a", 10, seed=2)}
    found = paired_with({**references, **others}, list(references))
    assert {label: found.get(label) for label in others} == {"1": "seed 0", "2": "seed 1", "3": None}


def test_trajectories_are_compared_where_both_kept_those_of_the_same_images():
    def traced(images, steps):
        return SimpleNamespace(cell=SimpleNamespace(trace_images=images, sampler=SimpleNamespace(timetable=range(steps))))

    pairs = [((2, 10), (2, 10)), ((2, 10), (0, 10)), ((0, 10), (0, 10)), ((2, 10), (3, 10)), ((2, 10), (2, 20))]
    assert [both_traced(traced(*a), traced(*b)) for a, b in pairs] == [True, False, False, False, False]


@pytest.mark.parametrize("name", ["rule", "rule_ideal"])
def test_every_pair_of_the_rule_has_a_plain_row_and_a_reference_of_its_timetable(name):
    experiment = Experiment.read(Path(name))
    assert len(bases(experiment.rows)) == len(experiment.rows) // 2
    endings = {label.split(", ")[1] for label in experiment.rows}
    assert {label.split(", ")[1] for label in experiment.references} == endings == {"T=10", "T=20", "T=50"}
