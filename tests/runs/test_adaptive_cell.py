"""``efficiency.schedule=adaptive`` as a cell: refused early, identified by its threshold, killed and resumed to the same bytes."""

import pytest

import iec
import iec.runs.sampling as sampling
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.engine.__main__ import export_cell
from iec.efficiency.techniques import DeepCache
from iec.errors import ConfigError
from iec.runs.runner import run_cell
from iec.runs.sampling import calibration_calls, prepare
from iec.tables.rows import Row

ADAPTIVE = ["efficiency=deepcache", "efficiency.schedule=adaptive"]
CELL = [*ADAPTIVE, "efficiency.threshold=0.3"]
UNIFORM = ["efficiency=deepcache"]
FREE = ("none", "es", "es_search", "unic", "dcw", "timeshift")


def test_a_cell_is_identified_by_its_threshold_and_not_by_an_interval(make_cell):
    cells = [CELL, [*ADAPTIVE, "efficiency.threshold=0.31"], UNIFORM, [*CELL, "efficiency.forecast=linear"]]
    assert len({make_cell(*words).slug for words in cells}) == 4
    assert make_cell(*CELL, "efficiency.interval=9").slug == make_cell(*CELL).slug
    assert make_cell(*CELL).identity["efficiency"]["refresh"] == {"adaptive": {"threshold": 0.3}}


def test_which_corrections_are_made_at_steps_that_reuse_is_part_of_the_identity(make_cell):
    """An explicit list, too, is that of the steps where an image refreshes, unless it says otherwise."""
    whole = ["iec=all_steps", "iec.placement=explicit", "iec.steps=[0,1,2,3]", "sampler.steps=4", "sampler.spacing=uniform"]
    kinds = [whole, [*whole, "iec.cached_steps=cached"], [*whole, "iec.cached_steps=full"]]
    assert len({make_cell(*CELL, *words).slug for words in kinds}) == 3
    assert make_cell(*CELL, *whole).identity == make_cell(*CELL, "iec=all_steps", *whole[3:]).identity  # the same images


@pytest.mark.parametrize(
    ("words", "message", "ways_out"),
    [
        (ADAPTIVE, "needs efficiency.threshold", [CELL]),
        ([*ADAPTIVE, "efficiency.threshold=0"], "above 0", [CELL]),
        (["efficiency=deepcache", "efficiency.threshold=0.3"], "schedule=adaptive, not uniform", [CELL, UNIFORM]),
        ([*CELL, "sampler=dpmsolver"], "sampler=ddim, or another schedule", [CELL, [*UNIFORM, "sampler=dpmsolver"]]),
        (
            [*CELL, "corrector=affine"],
            "corrector=none, es, es_search, unic, dcw or timeshift, or another schedule",
            [*([*CELL, f"corrector={name}"] for name in FREE), [*UNIFORM, "corrector=affine"]],
        ),
        ([*CELL, "corrector=restart", "corrector.sigma_max=2", "corrector.sigma_min=0.3"], "Restart.*corrector=none", [CELL]),
        (
            [*CELL, "iec=all_steps", "iec.preset=official_ddpm"],
            "iec.norm=image",
            [[*CELL, "iec=all_steps", "iec.preset=official_ddpm", "iec.norm=image"]],
        ),
        (
            ["efficiency=cachequant_w8a8", *CELL[1:]],
            "schedule=planned or dps, or efficiency=deepcache",
            [[*UNIFORM, *CELL[1:]], *(["efficiency=cachequant_w8a8", f"efficiency.schedule={s}"] for s in ("planned", "dps"))],
        ),
    ],
)
def test_refused_before_any_work_and_the_ways_out_work(make_cell, words, message, ways_out):
    with pytest.raises(ConfigError, match=message):
        make_cell(*words)
    for way_out in ways_out:
        make_cell(*way_out)


def test_pipelines_and_files_take_steps_that_are_known(make_cell, tmp_path):
    with pytest.raises(ConfigError, match="each image decides, in `iec run`") as refused:
        CachingConfig(schedule="adaptive", threshold=0.3).steps_of(10)
    assert "uniform" in str(refused.value) and CachingConfig(schedule="uniform").steps_of(10) == {0, 5}
    with pytest.raises(ConfigError, match=r"Use efficiency\.schedule=uniform"):
        export_cell(make_cell(*CELL), tmp_path / "network.onnx", "onnxruntime")


def test_a_searched_divisor_is_that_of_the_run_whose_images_decide(make_cell, tmp_path):
    """The search samples as the cell does; with a threshold that refreshes everywhere no divisor but 1 is nearest."""
    words = [*CELL[:2], "corrector=es_search", "corrector.calibration_images=2", "corrector.values=3", "sampler.steps=4"]
    cell = make_cell(*words, "efficiency.threshold=1e-9", "model=ddim_fashion_small", f"paths.artifacts={tmp_path}")
    prepared, sampler = prepare(cell, cell.model.load("cpu"))
    assert sampler.adaptive == cell.technique.adaptive and sampler.corrector.b == 1
    assert calibration_calls(cell, prepared, sampler) == 4 * 2 * 4


def test_killed_and_resumed_it_makes_the_same_bytes_and_calls_are_the_mean_over_images(make_cell, tmp_path, monkeypatch):
    words = [*CELL[:2], "efficiency.threshold=0.5", "efficiency.forecast=linear", "iec=all_steps", "sampler.steps=8"]
    words += ["model.random_weights=true", "num_images=4", "batch_size=2", "metrics=none", "processes=1"]

    def run(folder):
        return run_cell(make_cell(*words, f"paths.output={tmp_path / folder}"))

    sample = sampling.sample_batch

    def stopped(model, network, sampler, seed, indices, *rest):
        if indices[0] == 2:
            raise KeyboardInterrupt
        return sample(model, network, sampler, seed, indices, *rest)

    monkeypatch.setattr(sampling, "sample_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.setattr(sampling, "sample_batch", sample)
    resumed, whole = run("stopped"), run("whole")
    assert resumed.manifest.shards == whole.manifest.shards
    calls = whole.manifest.calls_per_image
    assert calls == resumed.manifest.calls_per_image
    assert 2 <= calls["full"] == calls["correction"] < 8 and calls["cached_correction"] == 0
    column = Row("adaptive", whole, {}, None).texts()["calls (full+cached+corr.)"]
    assert column == f"{8 + calls['full']:g} ({calls['full']:g}+{8 - calls['full']:g}+{calls['full']:g})"


def test_the_two_features_that_it_stores_are_counted(tmp_path):
    model = iec.load_model("ddim_fashion_small", device="cpu")
    table = iec.Timetable.spaced("quad", 4, model.card.schedule)

    def stored(**options):
        return DeepCache(**options).prepare(model, table, tmp_path).cost.cache_bytes

    adaptive = {"schedule": "adaptive", "threshold": 0.3}
    assert stored(**adaptive) == 2 * stored() == stored(forecast="linear") == stored(**adaptive, forecast="linear")
