"""Forecasts as a cell: refused early, one identity a forecast, resumed to the same bytes, its memory counted."""

import pytest

from iec.errors import ConfigError
from iec.runs.runner import run_cell
from iec.tables.rows import Row

TINY = ["efficiency.interval=2", "model.random_weights=true", "sampler.steps=6", "batch_size=1", "metrics=none"]
CACHE = ["efficiency=deepcache", *TINY]
CACHEQUANT = [
    "efficiency=cachequant_w8a8",
    "efficiency.scale_rule=max",
    "efficiency.dec_images=2",
    "efficiency.calibration_images=2",
    *TINY,
]
ORDER_2 = ["efficiency.forecast=taylor", "efficiency.forecast_order=2"]


def named(make_cell, *words, base="deepcache"):
    return make_cell(f"efficiency={base}", *(f"efficiency.{word}" for word in words))


@pytest.mark.parametrize("base", ["deepcache", "cachequant_w8a8"])
def test_a_forecast_is_part_of_the_identity_where_it_changes_something(make_cell, base):
    none = make_cell(f"efficiency={base}").slug
    assert named(make_cell, "forecast=none", base=base).slug == none
    assert named(make_cell, "forecast=taylor", "forecast_order=0", base=base).slug == none
    linear = named(make_cell, "forecast=linear", base=base).slug
    assert linear == named(make_cell, "forecast=newton", "forecast_order=1", "forecast_clock=index", base=base).slug != none
    others = [
        named(make_cell, *words, base=base).slug for words in (["forecast=probe"], ["forecast=linear", "forecast_clock=log_snr"])
    ]
    assert len({none, linear, *others}) == 4


@pytest.mark.parametrize(
    ("words", "message", "way_out"),
    [
        (["forecast=spline"], "Unknown efficiency.forecast", ["forecast=probe"]),
        (["forecast=taylor", "forecast_order=4"], "0, 1, 2 or 3", ["forecast=taylor", "forecast_order=3"]),
        (["forecast_order=2"], "belongs to efficiency.forecast=taylor", ["forecast=hicache", "forecast_order=2"]),
        (["forecast=linear", "forecast_clock=t"], "index or log_snr", ["forecast=linear", "forecast_clock=log_snr"]),
    ],
)
@pytest.mark.parametrize("base", ["deepcache", "cachequant_w8a8"])
def test_refused_before_any_work(make_cell, words, message, way_out, base):
    with pytest.raises(ConfigError, match=message):
        named(make_cell, *words, base=base)
    assert named(make_cell, *way_out, base=base).technique.forecasts


def test_a_restart_goes_back_past_what_cachequant_was_calibrated_for(make_cell):
    restart = ["corrector=restart", "corrector.sigma_max=2", "corrector.sigma_min=0.3"]
    with pytest.raises(ConfigError, match="efficiency.forecast=none, or another corrector"):
        make_cell(*CACHEQUANT, *ORDER_2, *restart)
    for way_out in ([*CACHEQUANT, *restart], [*CACHEQUANT, *ORDER_2, "corrector=unic"], [*CACHE, *ORDER_2, *restart]):
        make_cell(*way_out)


def test_it_resumes_to_the_same_bytes_and_counts_what_it_stores(make_cell, tmp_path):
    def run(images, folder, *words):
        return run_cell(make_cell(*CACHE, *words, f"num_images={images}", f"paths.output={tmp_path / folder}"))

    run(1, "stopped", *ORDER_2)
    resumed, whole, plain = run(2, "stopped", *ORDER_2), run(2, "whole", *ORDER_2), run(2, "whole")
    assert resumed.manifest.shards == whole.manifest.shards != plain.manifest.shards
    assert resumed.manifest.calls_per_image == plain.manifest.calls_per_image
    assert whole.cost.full == plain.cost.full and whole.cost.cached == plain.cost.cached
    assert whole.cost.cache_bytes == 3 * plain.cost.cache_bytes > 0
    column = Row("forecast", whole, {}, None).texts()["cache (KB / image)"]
    assert float(column) == pytest.approx(whole.cost.cache_bytes / 1e3, abs=0.05)


def test_cachequant_samples_what_it_was_calibrated_for(make_cell, tmp_path):
    paths = ["num_images=1", f"paths.output={tmp_path}", f"paths.artifacts={tmp_path / 'artifacts'}"]
    result = run_cell(make_cell(*CACHEQUANT, "efficiency.forecast=probe", *paths))
    assert result.manifest.calls_per_image["cached"] == 3 and result.cost.cache_bytes > 0
    stored = [path.read_bytes() for path in (tmp_path / "artifacts").glob("*.safetensors")]
    assert len(stored) == 3 and all(b"forecast" in content for content in stored)
