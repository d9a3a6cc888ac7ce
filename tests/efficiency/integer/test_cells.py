"""Whole cells of a bundled model on integers."""

import numpy as np
import pytest
import torch

import iec
from iec.efficiency import prepare as preparation
from iec.efficiency import techniques
from iec.errors import ConfigError, DeviceError
from iec.runs.runner import run_cell
from iec.runs.sampling import prepare
from iec.sampling.network import Step

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


def refuse(*_, **__):
    raise AssertionError("not needed: the integers are stored")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", [("efficiency=w4a8", *QUICK), CACHEQUANT], ids=lambda options: options[0])
def test_a_later_process_reads_the_integers_and_makes_no_simulated_network(make_cell, tmp_path, monkeypatch, options):
    cell = make_cell("sampler.steps=3", *options, "efficiency.kernels=int8_unfused")
    model, table = cell.model.load("cpu"), cell.sampler.timetable
    x = torch.randn(1, *model.card.shape)

    def later():
        prepared = cell.technique.prepare(model, table, tmp_path)
        return prepared, prepared.network(x, Step(0, table.pairs[0][0])).eps

    first, expected = later()
    monkeypatch.setattr(preparation, "quantize_unet", refuse)
    monkeypatch.setattr(techniques.Calibration, "prepared", refuse)
    second, eps = later()
    assert torch.equal(eps, expected)
    assert (second.cost, second.refresh) == (first.cost, first.refresh)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("integers-")]) == 1


@pytest.mark.usefixtures("one_thread")
def test_the_library_quantizes_on_integers_with_and_without_a_folder(tmp_path):
    model = iec.load_model("ddim_fashion_small", device="cpu")
    table = iec.Timetable.spaced("quad", 3, model.card.schedule)
    config = iec.PTQConfig(calibration_images=2, scale_rule="max", weight_bits=4)
    x, step = torch.randn(2, *model.card.shape), Step(0, table.pairs[0][0])
    stored = iec.quantize(model, config, table, artifacts=tmp_path, kernels="int8")
    assert torch.equal(iec.quantize(model, config, table, kernels="int8")(x, step).eps, stored(x, step).eps)
    refused = {"weight_bits=16 has no form": ("int8", iec.PTQConfig(weight_bits=16)), "choose simulated": ("int4", config)}
    for message, (kernels, unfit) in refused.items():
        with pytest.raises(ConfigError, match=message):
            iec.quantize(model, unfit, table, kernels=kernels)


@pytest.mark.usefixtures("one_thread")
def test_integers_belong_to_the_cut_that_they_were_calibrated_at(tmp_path):
    model = iec.load_model("ddim_fashion_small", device="cpu")
    table = iec.Timetable.spaced("quad", 2, model.card.schedule)
    options = {"interval": 2, "dec_images": 2, "calibration_images": 2, "scale_rule": "max", "dec_quant": False}
    for cut in (2, 1):  # of 64 channels both
        techniques.CacheQuant(cut=cut, kernels="int8_unfused", **options).prepare(model, table, tmp_path)
    assert len(list(tmp_path.glob("integers-*.safetensors"))) == 2


def test_a_machine_is_refused_before_a_plan_is_made(tmp_path, monkeypatch):
    def refused(*_):
        raise DeviceError("no VNNI")

    monkeypatch.setattr(techniques, "require_machine", refused)
    monkeypatch.setattr(techniques, "planned", lambda *_: pytest.fail("a plan was made"))
    model = iec.load_model("ddim_fashion_small", device="cpu")
    table = iec.Timetable.spaced("quad", 4, model.card.schedule)
    with pytest.raises(DeviceError, match="no VNNI"):
        techniques.CacheQuant(interval=2, schedule="planned", kernels="int8").prepare(model, table, tmp_path)
