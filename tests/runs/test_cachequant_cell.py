"""CacheQuant as a configuration: refused early, its schedule found late, one artefact that fits one configuration."""

import json

import pytest

from iec.errors import ArtifactError, ConfigError
from iec.runs.runner import run_cell

TINY = [
    "efficiency=cachequant_w8a8", "model.random_weights=true", "efficiency.interval=2", "efficiency.scale_rule=max",
    "efficiency.dps_images=4", "efficiency.dec_images=4", "efficiency.calibration_images=4", "efficiency.calibration_batch=4",
    "sampler.steps=4", "num_images=2", "batch_size=2", "metrics=none",
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["efficiency.interval=5"], "interval=5"),
        (["efficiency.schedule=dps", "efficiency.interval=5"], "interval=5"),
        (["efficiency.cut=99"], "cut=99 is not there"),
        (["efficiency.weight_bits=1"], "bits"),
        (["efficiency.schedule=explicit", "efficiency.steps=[1]"], "add 0"),
        (["efficiency.dec_images=1"], "dec_images=1"),
        (["efficiency.calibration_images=0"], "calibration_images"),
        (["efficiency.split_skips=false"], "dec_quant=false"),
        (["iec=all_steps", "iec.cached_steps=full"], "calibrates those steps for cached calls"),
        (["iec=all_steps", "iec.cached_steps=full", "efficiency.schedule=dps"], "calibrates those steps for cached calls"),
    ],
)
def test_refused_before_any_work(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell(*TINY, *overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cachequant")


@pytest.mark.parametrize("schedule", ["uniform", "dps"])
def test_a_cell_is_corrected_at_its_refresh_steps_only(make_cell, folder, schedule):
    paths = [f"paths.output={folder}", f"paths.artifacts={folder / 'artifacts'}"]
    cells = [make_cell(*TINY, f"efficiency.schedule={schedule}", iec, *paths) for iec in ("iec=none", "iec=all_steps")]
    plain, corrected = (run_cell(cell) for cell in cells)
    assert cells[1].identity != cells[0].identity
    calls = plain.manifest.calls_per_image, corrected.manifest.calls_per_image
    prepared = json.loads((cells[0].folder / "prepared.json").read_text())
    full = len(prepared["refresh"])
    assert prepared["refresh"][0] == 0 and full == 2
    assert [c["full"] for c in calls] == [full, full] and [c["cached"] for c in calls] == [4 - full, 4 - full]
    assert [c["correction"] for c in calls] == [0, full] and [c["cached_correction"] for c in calls] == [0, 0]
    cost = corrected.cost
    assert cost.cached.macs < cost.full.macs and cost.full.bops == 64 * cost.full.macs


def test_a_calibration_of_another_configuration_is_refused(make_cell, folder):
    path = sorted((folder / "artifacts").glob(f"cachequant-{16 * '[0-9a-f]'}.safetensors"))[0]
    paths = [f"paths.output={folder / 'other'}", f"paths.artifacts={folder / 'other'}", f"efficiency.artifact={path}"]
    for override, message in [
        ("efficiency.interval=3", "interval: stored 2, expected 3"),
        ("efficiency.weight_bits=4", "weight_bits: stored 8, expected 4"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            run_cell(make_cell(*TINY, *paths, override))
