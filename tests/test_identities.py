"""Identities that must outlive every change of the code around them: results on disk are found by them.

A value here changes only on purpose, together with a line in CHANGELOG.md: all cells and calibrations of users are then made anew.
"""

import pytest

import iec
from iec.io.files import canonical_hash
from iec.models.cards import card
from iec.runs.runner import run_cell

RANDOM = "model.random_weights=true"
PINNED_WEIGHTS = "106b198fce5c0c2289dd37e072c1c2b5008d7780589bbbec426b5d64f874f581"
"""What the packaged weights of ddim_cifar_small were when the values were pinned; weights that are trained on make other cells."""
CELLS = {
    "": "7ea9ae17b0689b75",
    "efficiency=w8a8 iec=all_steps": "a2da9745f6db74b4",
    "efficiency=w4a8 iec=all_steps iec.lambda=0.3 iec.iterations=2 efficiency.reconstruct=block": "0985fc1d235f3049",
    "efficiency=deepcache iec=first_last iec.fraction=0.2 sampler.steps=10": "99c12f943f883a6e",
    "efficiency=cachequant_w8a8 iec=first_step efficiency.schedule=dps": "13652648c3ffd71d",
    "model=ddim_cifar model.random_weights=true efficiency=w4a8 iec=all_steps iec.preset=official_ddpm": "c99a59826b673941",
    "model=ldm_imagenet model.random_weights=true efficiency=deepcache efficiency.interval=10 iec=all_steps": "8ebb7bde913ed643",
    "model=sd_coco model.random_weights=true efficiency=cachequant_w4a8 iec=first_step": "d7b7dcfde230afc7",
    "model=ldm_lsun_church model.random_weights=true iec=heun sampler.eta=0.5 seed=3": "4e0f09b741b92662",
    "model=ddim_lsun_bedroom model.random_weights=true sampler=unipc sampler.steps=20 batch_size=4": "7d809847fab4e6da",
}
CALIBRATIONS = {
    "efficiency=w8a8": ["ptq-460e44f982ef61fd.safetensors"],
    "efficiency=w4a8": ["ptq-4b3b47fcc5562773.safetensors"],
    "efficiency=cachequant_w8a8 efficiency.interval=2 efficiency.dec_images=2 efficiency.dps_images=2 efficiency.schedule=dps": [
        "cachequant-cache-965baed945789420.safetensors",
        "cachequant-f162a73808bf8718.safetensors",
        "cachequant-ptq-5f4ef990172a3d86.safetensors",
        "cachequant-schedule-da21e6d2963eda7d.safetensors",
    ],
    "efficiency=cachequant_w4a8 efficiency.interval=2 efficiency.dec_images=2": [
        "cachequant-ab6d66e1e1dcd28e.safetensors",
        "cachequant-cache-8e35a21cf5ca1dba.safetensors",
        "cachequant-ptq-2d48d04a167929a2.safetensors",
    ],
}
NAMES = [
    "CachingConfig",
    "Correction",
    "FeatureCache",
    "IECEulerScheduler",
    "IECFlowMatchScheduler",
    "IECScheduler",
    "Model",
    "Network",
    "NoiseSchedule",
    "PTQConfig",
    "Placement",
    "Prediction",
    "Prepared",
    "Sampler",
    "Samples",
    "Step",
    "Technique",
    "Timetable",
    "UNetNetwork",
    "apply",
    "load_model",
    "quantize",
    "remove",
    "sample",
]


@pytest.mark.parametrize(("overrides", "expected"), CELLS.items())
def test_cells_keep_their_identity(make_cell, overrides, expected):
    cell = make_cell(*overrides.split())
    assert cell.slug.endswith(canonical_hash(cell.identity)[:10])
    packaged, model = card("ddim_cifar_small").packaged.sha256, cell.identity["model"]
    weights = PINNED_WEIGHTS if model["weights"] == packaged else model["weights"]
    assert canonical_hash({**cell.identity, "model": {**model, "weights": weights}})[:16] == expected


@pytest.mark.parametrize(("overrides", "expected"), CALIBRATIONS.items())
def test_calibrations_keep_their_file_names(make_cell, tmp_path, overrides, expected):
    small = ["sampler.steps=3", "num_images=1", "batch_size=1", "metrics=none", "efficiency.calibration_images=2"]
    run_cell(make_cell(RANDOM, *small, *overrides.split(), f"paths.output={tmp_path}", f"paths.artifacts={tmp_path}/artifacts"))
    assert sorted(path.name for path in (tmp_path / "artifacts").glob("*.safetensors")) == expected


def test_the_package_exports_these_names():
    assert sorted(iec.__all__) == NAMES
    assert all(getattr(iec, name) is not None for name in NAMES)
