"""Which row a row is paired with."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from iec.tables.experiment import Experiment
from iec.tables.rows import _reference_of
from iec.tables.styles import bases


def result(model, steps):
    timetable = SimpleNamespace(pairs=((steps, 0),))
    return SimpleNamespace(cell=SimpleNamespace(card=SimpleNamespace(name=model), sampler=SimpleNamespace(timetable=timetable)))


def test_a_row_is_paired_with_the_reference_of_its_model_and_timetable_or_the_last_of_its_model():
    references = {"a, T=10": result("a", 10), "a, T=20": result("a", 20), "b, T=10": result("b", 10)}
    assert _reference_of(result("a", 10), references) == "a, T=10"
    assert _reference_of(result("a", 20), references) == "a, T=20"
    assert _reference_of(result("a", 50), references) == "a, T=20"
    assert _reference_of(result("b", 20), references) == "b, T=10"
    assert _reference_of(result("c", 10), references) is None


@pytest.mark.parametrize("name", ["rule", "rule_ideal"])
def test_every_pair_of_the_rule_has_a_plain_row_and_a_reference_of_its_timetable(name):
    experiment = Experiment.read(Path(name))
    assert len(bases(experiment.rows)) == len(experiment.rows) // 2
    endings = {label.split(", ")[1] for label in experiment.rows}
    assert {label.split(", ")[1] for label in experiment.references} == endings == {"T=10", "T=20", "T=50"}
