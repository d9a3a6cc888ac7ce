"""A planned schedule as a configuration: refused early, found once, kept, and counted."""

import json

import pytest
import torch

from iec.analysis.suggest import SEED as SUGGESTION_SEED
from iec.correctors.pairs import SEED as CORRECTOR_SEED
from iec.efficiency.cachequant import FloatRuns
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.planning import plan as planning
from iec.efficiency.planning.plan import SEED, planned, usual
from iec.efficiency.prepare import CALIBRATION_SEED
from iec.efficiency.techniques import CacheQuant, DeepCache
from iec.errors import ConfigError
from iec.io.artifacts import load_artifact
from iec.models import load_model
from iec.models.cards import card
from iec.runs.runner import run_cell
from iec.sampling.timetable import Timetable

TINY = [
    "model.random_weights=true", "efficiency.schedule=planned", "efficiency.refreshes=2", "efficiency.plan_images=2",
    "efficiency.plan_evaluations=4", "sampler.steps=4", "num_images=2", "batch_size=2", "metrics=none",
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refreshes": 21}, r"refreshes=21 must be a whole number of 1 \.\. 20"),
        ({"refreshes": 0}, "refreshes=0"),
        ({"interval": 21}, r"interval=21.*1 \.\. 20"),
        ({"objective": "fid"}, "final, feature, forecast"),
        ({"plan_images": 0}, "plan_images=0"),
        ({"plan_evaluations": 3}, "plan_evaluations=3"),
        ({"objective": "feature", "plan_evaluations": 50}, "Leave efficiency.plan_evaluations out"),
        ({"objective": "forecast"}, "Choose one, or efficiency.objective=feature"),
        ({"objective": "forecast", "forecast": "probe"}, "plans for the weights"),
        ({"schedule": "uniform", "refreshes": 3}, "belongs to efficiency.schedule=planned"),
        ({"schedule": "uniform", "objective": "final"}, "belongs to efficiency.schedule=planned"),
    ],
)
@pytest.mark.parametrize("technique", [DeepCache, CacheQuant])
def test_what_cannot_be_planned_is_refused(technique, options, message):
    with pytest.raises(ConfigError, match=message):
        technique(**{"schedule": "planned", **options}).plan(20)
    for ways_out in ({"objective": "feature"}, {"objective": "forecast", "forecast": "linear"}, {"refreshes": 20}):
        technique(schedule="planned", **ways_out).plan(20)


@pytest.mark.parametrize("efficiency", ["deepcache", "cachequant_w8a8"])
def test_a_cell_that_cannot_be_planned_is_refused_before_any_weights_are_loaded(make_cell, efficiency):
    with pytest.raises(ConfigError, match=r"refreshes=21 must be a whole number of 1 \.\. 20"):
        make_cell(f"efficiency={efficiency}", "efficiency.schedule=planned", "efficiency.refreshes=21")


@pytest.mark.parametrize("technique", [DeepCache, CacheQuant])
def test_a_technique_is_identified_by_its_plan(technique):
    entry = card("ddim_cifar_small")

    def identity(**options):
        return technique(schedule="planned", **options).identity(entry, 20)

    plan = {"objective": "final", "refreshes": 4, "images": 8, "evaluations": 100}
    assert identity()["refresh"] == {"planned": plan}
    assert identity(refreshes=4, objective="final") == identity()
    for other in ({"refreshes": 5}, {"objective": "feature"}, {"plan_images": 9}, {"plan_evaluations": 99}, {"forecast": "linear"}):
        assert identity(**other) != identity()


def test_a_plan_by_forecast_belongs_to_the_forecast_and_one_by_feature_does_not(make_cell, tmp_path):
    own = ["efficiency=deepcache", *(word for word in TINY if "evaluations" not in word), "efficiency.forecast=linear"]
    paths = [f"paths.output={tmp_path}", f"paths.artifacts={tmp_path / 'artifacts'}"]
    linear = make_cell(*own, *paths, "efficiency.objective=forecast")
    assert linear.identity["efficiency"]["refresh"]["planned"]["objective"] == "forecast"
    run_cell(linear)
    plain = make_cell(*own[:-1], *paths, "efficiency.objective=feature")
    run_cell(plain)
    assert len(list((tmp_path / "artifacts").glob("plan-features-*.safetensors"))) == 1  # one pass serves both
    assert len(list((tmp_path / "artifacts").glob("plan-????????????????.safetensors"))) == 2


def test_steps_that_are_not_planned_yet_are_not_taken_for_uniform_ones():
    with pytest.raises(ConfigError, match="give them as explicit"):
        CachingConfig(schedule="planned").steps_of(20)


def test_a_plan_is_made_from_seeds_that_nothing_else_uses():
    assert len({SEED, CALIBRATION_SEED, SUGGESTION_SEED, CORRECTOR_SEED}) == 4
    assert SEED > 2**40  # far from what a person samples with


def test_a_cell_runs_at_its_planned_steps_and_counts_what_the_plan_took(make_cell, tmp_path):
    paths = [f"paths.output={tmp_path}", f"paths.artifacts={tmp_path / 'artifacts'}"]
    cell = make_cell("efficiency=deepcache", *TINY, "iec=all_steps", *paths)
    calls = run_cell(cell).manifest.calls_per_image
    assert (calls["full"], calls["cached"], calls["correction"]) == (2, 2, 2)
    prepared = json.loads((cell.folder / "prepared.json").read_text())
    (path,) = (tmp_path / "artifacts").glob("plan-????????????????.safetensors")
    evaluations = json.loads(path.with_suffix(".evaluations.json").read_text())
    spent = evaluations["calls"]
    assert prepared["calibration_calls"] == sum(spent.values()) + 2 * 4  # the features, of 2 images and 4 steps
    assert spent["correction"] == 0 < spent["cached"]
    values = evaluations["values"]
    assert " ".join(str(i) for i in prepared["refresh"]) + " | " in values
    assert min(values.values()) == values[" ".join(str(i) for i in prepared["refresh"]) + " | "]


def test_cachequant_is_calibrated_for_the_steps_that_the_float_model_has_planned(make_cell, tmp_path):
    small = ["efficiency.scale_rule=max", "efficiency.dec_images=2", "efficiency.calibration_images=2"]
    paths = [f"paths.output={tmp_path}", f"paths.artifacts={tmp_path / 'artifacts'}"]
    own = [word for word in TINY if "evaluations" not in word] + ["efficiency.objective=feature", *paths]
    cells = [make_cell("efficiency=deepcache", *own), make_cell("efficiency=cachequant_w8a8", *own, *small)]
    refreshes = []
    for cell in cells:
        run_cell(cell)
        refreshes.append(json.loads((cell.folder / "prepared.json").read_text())["refresh"])
    assert refreshes[0] == refreshes[1]
    assert len(list((tmp_path / "artifacts").glob("plan-*.safetensors"))) == 2  # the plan and its features, of both cells


@pytest.fixture(scope="module")
def model():
    return load_model(random_weights=True, device="cpu")


def test_a_plan_is_no_worse_than_what_it_starts_from_and_is_found_once(model, tmp_path, monkeypatch):
    table = Timetable.spaced("uniform", 5, model.card.schedule)
    config = planning.PlanConfig(2, images=2, evaluations=4)
    plan = planned(model, CachedUNetNetwork(model.unet, model.card.cut), table, config, tmp_path)
    (path,) = tmp_path.glob("plan-*.evaluations.json")
    values = json.loads(path.read_text())["values"]
    assert len(values) <= 4 and plan.error == min(values.values())
    for start in usual(5, 2):
        assert " ".join(str(i) for i in sorted(start)) + " | " in values
    monkeypatch.setattr(planning, "search", None)
    assert planned(model, CachedUNetNetwork(model.unet, model.card.cut), table, config, tmp_path) == plan


def test_a_plan_by_features_is_stored_with_all_that_it_was_made_from(model, tmp_path):
    table = Timetable.spaced("uniform", 5, model.card.schedule)
    plan = planned(model, CachedUNetNetwork(model.unet, model.card.cut), table, planning.PlanConfig(3, "feature", 2), tmp_path)
    assert plan.calls == planning.Calls(full=10)
    (path,) = tmp_path.glob("plan-features-*.safetensors")
    network = CachedUNetNetwork(model.unet, model.card.cut)
    calls = list(FloatRuns(network, table, model.card.shape, SEED, 2).calls(2, "features"))
    features = torch.stack([call.feature.double().flatten(1) for call in calls], 1)
    fingerprint = planning._Planning(model, network, table, planning.PlanConfig(3, "feature", 2), tmp_path, {}).base
    stored = load_artifact(path, "plan-features", {**fingerprint, "images": 2})["products"]
    torch.testing.assert_close(stored, features @ features.mT)


@pytest.mark.parametrize(("steps", "count"), [(50, 10), (50, 7), (20, 20), (9, 1), (250, 50)])
def test_the_usual_schedules_have_as_many_refreshes(steps, count):
    found = usual(steps, count)
    assert found and all(len(refresh) == count and 0 in refresh for refresh in found)
