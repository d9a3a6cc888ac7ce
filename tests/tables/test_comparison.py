"""Comparisons with the plain row of a technique: the test, its adjustment, groups of equal cost, and who is compared with whom."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from iec.efficiency.cost import CallCost
from iec.errors import ConfigError
from iec.metrics.frechet import GaussianStatistics, frechet_distance
from iec.metrics.influence import influence
from iec.metrics.interval import Interval
from iec.tables import comparison, figures
from iec.tables.comparison import compared, comparison_of, cost_groups, holm
from iec.tables.experiment import Experiment
from iec.tables.figures import by_picture
from iec.tables.rows import Comparison, Row
from iec.tables.styles import bases
from iec.tables.variants import bases_of

SPEC = """
title: a few rows
reference: full
compare_to: ""
common: [model=ddim_fashion_small]
variants:
  "": []
  ", IEC": [iec=all_steps]
  ", 2T": {of: [cached], overrides: [sampler.steps=40]}
rows:
  full: [efficiency=none]
  cached: [efficiency=deepcache]
noise: [cached, ", IEC"]
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "few.yaml"
    path.write_text(SPEC)
    return Experiment.read(path)


def test_the_test_is_students_on_paired_differences():
    draw = np.random.default_rng(0)
    for n, shift in ((2, 0.1), (7, 0.5), (200, 0.02)):
        a, b = draw.normal(size=n) + shift, draw.normal(size=n)
        expected, found = stats.ttest_rel(a, b), comparison_of(float((a - b).mean()), a - b)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert (found.change.low, found.change.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    same = np.full(5, 0.25)
    assert comparison_of(0.25, same) == Comparison(Interval(0.25, 0.25, 0.25), 0.0, pytest.approx(np.nan, nan_ok=True))
    assert comparison_of(0.0, 0 * same).p == 1


def test_the_change_of_an_fid_is_tested_by_influences_as_draws_of_pairs_spread():
    """The standard error is that of the change over draws, and not that of two independent FIDs, which is far wider."""
    draw = np.random.default_rng(1)
    real, changes, errors, alone = GaussianStatistics(10**6, np.zeros(4), np.eye(4)), [], [], []
    for _ in range(200):
        a = draw.normal(size=(400, 4)) + 0.5
        b = a + 0.2 * draw.normal(size=(400, 4)) + 0.05
        own, other = (GaussianStatistics.of(x) for x in (a, b))
        influences = influence(a, own, real), influence(b, other, real)
        found = comparison_of(frechet_distance(other, real) - frechet_distance(own, real),
                              influences[1] - influences[0])  # fmt: skip
        changes.append(found.change.value)
        errors.append((found.change.high - found.change.low) / 2 / 1.966)
        alone.append(np.hypot(*(x.std() / 20 for x in influences)))
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.15) and np.mean(alone) > 2.5 * np.mean(errors)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and holm([0.7, 0.6]) == [1, 1] and holm([0.2]) == [0.2] and holm([]) == []


def test_groups_share_a_letter_within_five_percent_of_their_cheapest_row():
    costs = {"plain": 1.0, "unic": 1.0, "a bit more": 1.05, "IEC": 2.0, "Heun": 1.95, "alone": 7.0, "zero": 0.0, "nothing": 0.0}
    groups = cost_groups(costs)
    assert groups == {"zero": "A", "nothing": "A", "plain": "B", "unic": "B", "a bit more": "B", "Heun": "C", "IEC": "C"}
    assert cost_groups({"x": 1.0, "y": 1.04, "z": 1.06}) == {"x": "A", "y": "A"}  # no chain of small steps
    many = cost_groups({f"{k}{half}": 2.0**k for k in range(28) for half in "ab"})
    assert many["25a"] == "Z" and many["26a"] == "AA" and many["27b"] == "AB"


def test_every_row_is_compared_with_the_plain_one_of_its_technique(experiment):
    assert experiment.compared == {"full, IEC": "full", "cached, IEC": "cached", "cached, 2T": "cached"}
    axes = [{"-1": [], "-2": []}, {"": [], "+": []}]
    labels = ["a-1", "a-1+", "a-2", "a-2+"]
    assert bases_of(Path("x"), labels, ["a"], axes, "") == {"a-1+": "a-1", "a-2+": "a-2"}
    assert bases_of(Path("x"), labels[1:], ["a"], axes, "") == {"a-2+": "a-2"}  # without a plain row there is nothing to say


def test_rows_are_named_by_their_ending_as_well(experiment, tmp_path):
    assert experiment.noise == ("cached", "full, IEC", "cached, IEC")
    path = tmp_path / "few.yaml"
    path.write_text(SPEC.replace('noise: [cached, ", IEC"]', 'noise: [", Heun"]'))
    with pytest.raises(ConfigError, match=r"noise names \[', Heun'\], which are not rows"):
        Experiment.read(path)


def test_an_ending_that_is_none_is_refused_and_the_named_ones_work(tmp_path):
    path = tmp_path / "few.yaml"
    path.write_text(SPEC.replace('compare_to: ""', "compare_to: plain"))
    with pytest.raises(ConfigError, match="compare_to: 'plain' is no ending of the variants; choose one of '', ', IEC', ', 2T'"):
        Experiment.read(path)
    path.write_text(SPEC.replace('compare_to: ""', 'compare_to: ", IEC"'))
    assert Experiment.read(path).compared["full"] == "full, IEC"


def test_a_row_may_be_named_that_others_are_compared_with(tmp_path):
    path, text = tmp_path / "few.yaml", 'compare_to: {full: ["full, IEC", cached], cached: ["cached, 2T"]}'
    path.write_text(SPEC.replace('compare_to: ""', text))
    assert Experiment.read(path).compared == {"full, IEC": "full", "cached": "full", "cached, 2T": "cached"}
    for wrong, said in (
        ("{full: [cache]}", r"names \['cache'\], which are not rows"),
        ("{plain: [cached]}", r"names \['plain'\], which are not rows"),
        ('{full: [cached], "full, IEC": [cached]}', "a row is compared with one other row. Name each once"),
        ("{cached: [cached]}", "Name each once"),
    ):
        path.write_text(SPEC.replace('compare_to: ""', f"compare_to: {wrong}"))
        with pytest.raises(ConfigError, match=said):
            Experiment.read(path)


def test_the_tables_of_the_paper_compare_every_corrected_row_with_the_one_without():
    for name in ("table1", "table2", "table3", "table4", "table5", "figure3", "controls", "correction", "techniques", "rule"):
        experiment = Experiment.read(Path(name), ["device=cpu"])
        for label, base in bases(experiment.rows).items():
            assert experiment.compared[label] == base, (name, label)


def test_families_have_pictures_of_their_own_where_one_could_not_be_read(experiment, monkeypatch):
    assert {name: part.rows for name, part in by_picture(experiment).items()} == {"": experiment.rows}
    monkeypatch.setattr(figures, "LEGIBLE", 4)
    parts = by_picture(experiment)
    assert {name: list(part.rows) for name, part in parts.items()} == {
        "full": ["full", "full, IEC"],
        "cached": ["cached", "cached, IEC", "cached, 2T"],
    }
    assert parts["cached"].title == "a few rows, cached"
    assert list(by_picture(replace(experiment, product=(("full",), ("",), ("",))))) == [""]  # on a map
    named = by_picture(replace(experiment, figures={"a": ["cached, IEC", "full"], "b": ["cached"]}))
    assert {name: list(part.rows) for name, part in named.items()} == {"a": ["full", "cached, IEC"], "b": ["cached"]}


def test_rows_get_their_comparisons_adjusted_within_the_family(experiment, monkeypatch):
    draw = np.random.default_rng(2)
    moves = {label: draw.normal(size=50) for label in experiment.rows}
    manifest = SimpleNamespace(num_images=50, calls_per_image=1)

    def result(label):
        cost = SimpleNamespace(per_image=lambda calls: CallCost(bops=2e12 if ", " in label else 1e12))
        return SimpleNamespace(cell=SimpleNamespace(label=label, seed=0), store=None, manifest=manifest, cost=cost)

    monkeypatch.setattr(comparison, "fid_influence", lambda cell, store: ("FID", moves[cell.label]))
    psnr = {label: draw.normal(size=50) + (0.7 if label.endswith("IEC") else 0) for label in experiment.rows if label != "full"}
    rows = [
        Row(label, result(label), {"FID": Interval(float(k))}, None, {"PSNR": psnr[label]} if label in psnr else {})
        for k, label in enumerate(experiment.rows)
    ]
    by_label = {row.label: row for row in compared(rows, experiment)}
    assert {label: set(row.comparisons) for label, row in by_label.items()} == {
        "full": set(), "full, IEC": {"FID"}, "cached": set(), "cached, IEC": {"FID", "PSNR"}, "cached, 2T": {"FID", "PSNR"},
    }  # fmt: skip
    family = [by_label[label].comparisons["PSNR"] for label in ("cached, IEC", "cached, 2T")]
    expected = [stats.ttest_rel(psnr[label], psnr["cached"]).pvalue for label in ("cached, IEC", "cached, 2T")]
    assert [c.p for c in family] == pytest.approx(expected) and [c.adjusted for c in family] == pytest.approx(holm(expected))
    fid = by_label["cached, 2T"].comparisons["FID"]
    assert fid.change.value == 2 and fid.p == comparison_of(2.0, moves["cached, 2T"] - moves["cached"]).p
    assert by_label["full, IEC"].comparisons["FID"].adjusted == by_label["full, IEC"].comparisons["FID"].p
    assert {label: row.cost_group for label, row in by_label.items()} == {
        label: "B" if ", " in label else "A" for label in experiment.rows
    }
    by_label["cached"].result.cell.seed = 1
    with pytest.raises(ConfigError, match="'cached, IEC' is compared with 'cached', of another seed"):
        compared(rows, experiment)


def test_identical_images_and_undefined_scores_are_not_compared(experiment, monkeypatch):
    monkeypatch.setattr(comparison, "fid_influence", lambda cell, store: None)
    result = SimpleNamespace(cell=SimpleNamespace(seed=0), store=None, cost=None)
    values = {"cached": [np.inf, np.inf], "cached, IEC": [1.0, 2.0], "cached, 2T": [np.inf, np.inf]}
    rows = [Row(label, result, {}, None, {"PSNR": np.array(v)}) for label, v in values.items()]
    assert [row.comparisons for row in compared(rows, experiment)] == [{}, {}, {}]
    grain = {"cached": [1.0, np.nan, 3.0, 0.0], "cached, IEC": [2.0, 1.0, 5.0, 2.0]}
    rows = [Row(label, result, {}, None, {"grain": np.array(v)}) for label, v in grain.items()]
    found = compared(rows, experiment)[1].comparisons["grain"]
    assert found.change.value == pytest.approx(5 / 3) and found.p == pytest.approx(stats.ttest_1samp([1, 2, 2], 0).pvalue)


def test_what_is_printed_is_signed():
    assert str(Comparison(Interval(0.5, 0.25, 0.75), 0.001, 0.0123)) == "+0.5 [+0.25, +0.75], p = 0.012"
    assert str(Comparison(Interval(-2.0, -3.0, -1.0), 0, 0)) == "-2 [-3, -1], p < 0.0001"
