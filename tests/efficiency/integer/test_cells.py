"""Whole cells of a bundled model on integers."""

import numpy as np
import pytest

from iec.runs.runner import run_cell
from iec.runs.sampling import prepare

SMALL = ("sampler.steps=5", "num_images=3", "batch_size=3", "metrics=none", "processes=1", "trace_images=3")
QUICK = ("efficiency.calibration_images=2", "efficiency.scale_rule=max")
CACHEQUANT = ("efficiency=cachequant_w8a8", "efficiency.interval=2", "efficiency.dec_images=2", *QUICK)


@pytest.fixture
def run(make_cell, tmp_path):
    def make(*overrides):
        paths = (f"paths.output={tmp_path}", f"paths.artifacts={tmp_path}/artifacts")
        return run_cell(make_cell(*SMALL, *overrides, *paths))

    return make


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.first_images(3).astype(float) - b.first_images(3)) ** 2))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", [("efficiency=w8a8", *QUICK), CACHEQUANT], ids=lambda options: options[0])
def test_images_on_integers_are_those_of_the_simulation(run, options):
    """As closely as those of the simulation agree with themselves when its sums run in another order: 46 dB at these few steps,
    53 dB at 50 steps.
    """
    simulated, integer = run(*options), run(*options, "efficiency.kernels=int8")
    assert psnr(simulated, integer) > 42
    assert integer.manifest.calls_per_image == simulated.manifest.calls_per_image
    assert integer.cost == simulated.cost
    assert [path.suffix for path in integer.cell.artifacts.iterdir() if path.name.startswith("passes")] == [".so"]


@pytest.mark.usefixtures("one_thread")
def test_a_run_releases_the_float_weights(make_cell, tmp_path):
    cell = make_cell(*SMALL, "efficiency=w8a8", *QUICK, "efficiency.kernels=int8", f"paths.artifacts={tmp_path}")
    model = cell.model.load("cpu")
    prepared, _ = prepare(cell, model)
    assert prepared.own_weights
    assert {p.data_ptr() for p in model.unet.parameters()}.isdisjoint(p.data_ptr() for p in prepared.network.quantized.parameters())
    assert sum(p.numel() for p in prepared.network.quantized.parameters()) < 0.01 * sum(p.numel() for p in model.unet.parameters())
