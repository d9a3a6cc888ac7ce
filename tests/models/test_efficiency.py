"""Every technique on every kind of model: guidance batches, cross-attention contexts and class tables."""

import pytest
import torch

from iec.efficiency.prepare import CALIBRATION_SEED, calibration_inputs
from iec.efficiency.quantization import QuantizedNetwork
from iec.io.files import canonical_hash
from iec.runs.runner import run_cell
from iec.sampling.ddim import Sampler
from iec.sampling.noise import Noise
from iec.sampling.timetable import Timetable
from tests.models.tiny import PAPER

PTQ = ["efficiency.scale_rule=max", "efficiency.calibration_images=2"]
CACHE = ["efficiency.interval=2"]
TECHNIQUES = {
    "none": [],
    "w8a8": PTQ,
    "deepcache": CACHE,
    "cachequant_w4a8": [*PTQ, *CACHE, "efficiency.dec_images=2"],
}


def overrides(name, efficiency, tmp_path, *more):
    return [
        f"model={name}", "model.random_weights=true", f"efficiency={efficiency}", *TECHNIQUES[efficiency], "iec=all_steps",
        "sampler.steps=3", "sampler.timesteps=null", f"paths.output={tmp_path}", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("efficiency", TECHNIQUES)
@pytest.mark.parametrize("name", PAPER)
def test_every_technique_attaches_to_every_model(make_cell, tiny_cards, tmp_path, name, efficiency):
    steps = "sampler.steps=4"  # divides 1000
    result = run_cell(make_cell(*overrides(name, efficiency, tmp_path, steps)))
    cell, calls = result.cell, result.manifest.calls_per_image
    size = cell.card.resolution
    assert cell.metrics is None and cell.batch_size == 2
    assert result.first_images(3).shape == (3, size, size, 3)
    cached = "cache" in efficiency
    assert (calls["full"], calls["cached"], calls["correction"]) == ((2, 2, 2) if cached else (4, 0, 4))
    assert result.cost is not None and (result.cost.cached is None) == (not cached)


@pytest.mark.parametrize("name", ["ldm_imagenet", "sd_coco"])
def test_a_guided_image_costs_two_rows_of_the_unet(make_cell, tiny_cards, tmp_path, name):
    costs = [
        run_cell(make_cell(*overrides(name, "none", tmp_path, "num_images=1", "sampler.steps=2", f"model.guidance={w}"))).cost
        for w in (1.5, 1)
    ]
    assert costs[0].full.macs == 2 * costs[1].full.macs > 0


def test_both_rows_of_an_image_calibrate_the_scales(make_cell, tiny_cards, tmp_path):
    """The context's rows are calibrated on unconditional and conditional embeddings: their extremes come from both."""
    cell = make_cell(*overrides("ldm_imagenet", "w8a8", tmp_path, "sampler.steps=2"))
    model = cell.model.load("cpu")
    table = cell.sampler.timetable
    network = cell.technique.prepare(model, table, tmp_path / "a").network
    assert isinstance(network, QuantizedNetwork)
    name = next(name for name in network.quantized.quantizers() if name.endswith("attn2.to_k.input"))
    delta = network.quantized.quantizers()[name].delta[0].item()
    cond = model.cond(range(2))
    span = max(0.0, cond.max().item()) - min(0.0, cond.min().item())
    alone = cond[:, 1].max().item() - cond[:, 1].min().item()
    assert delta == pytest.approx((cond.max() - cond.min()).item() / 255, rel=1e-5) or delta == pytest.approx(span / 255, rel=1e-5)
    assert (cond.max() - cond.min()).item() > alone


@pytest.mark.parametrize("efficiency", ["w8a8", "cachequant_w4a8"])
def test_the_calibration_batch_bounds_what_the_network_gets_at_once(make_cell, tiny_cards, tmp_path, efficiency):
    """One image at a time, of two rows, whatever the card's batch size is: the way out where memory is short."""
    more = ["efficiency.calibration_batch=1", "sampler.steps=2"]
    cell = make_cell(*overrides("ldm_imagenet", efficiency, tmp_path, *more))
    model, sizes = cell.model.load("cpu"), []
    assert model.card.batch_size == 2
    model.unet.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    cell.technique.prepare(model, cell.sampler.timetable, tmp_path / "a")
    assert set(sizes) == {2}


def test_calibration_inputs_are_the_states_of_the_float_run(make_cell, tiny_cards, tmp_path):
    """[u_0, c_0, u_1, ..]: both rows of an image start from its noise, and batches do not matter."""
    cell = make_cell(*overrides("ldm_imagenet", "w8a8", tmp_path, "sampler.steps=4"))
    model, table = cell.model.load("cpu"), cell.sampler.timetable
    inputs, cond = calibration_inputs(model, table, 3, size=2)
    assert inputs.shape == (4, 6, *model.card.shape) and inputs.dtype == torch.float32
    assert torch.equal(inputs[:, 0::2], inputs[:, 1::2])
    assert torch.equal(cond, model.cond(range(3)).flatten(0, 1))
    sampler = Sampler(table)
    noise = Noise(CALIBRATION_SEED, (0, 1, 2), model.card.shape)
    states = torch.stack(list(sampler.trajectory(model.guided(model.network), noise, model.cond(range(3)))))
    torch.testing.assert_close(inputs[:, 0::2], states[:-1].float(), atol=1e-5, rtol=1e-5)


def test_embedding_tables_decoder_and_text_encoder_stay_float(make_cell, tiny_cards, tmp_path):
    cell = make_cell(*overrides("sd_coco", "w8a8", tmp_path, "sampler.steps=2"))
    model = cell.model.load("cpu")
    before = {name: value.clone() for name, value in model.decoder.module.state_dict().items()}
    text = {name: value.clone() for name, value in model.conditioner.encoder.model.state_dict().items()}
    network = cell.technique.prepare(model, Timetable.spaced("leading_plus_one", 2, model.card.schedule, final=0), tmp_path).network
    assert all(torch.equal(value, before[name]) for name, value in model.decoder.module.state_dict().items())
    assert all(torch.equal(value, text[name]) for name, value in model.conditioner.encoder.model.state_dict().items())
    assert all(name.split(".")[0] in dict(model.unet.named_children()) for name in network.quantized.layers())


def test_what_an_image_depends_on_is_in_the_cells_identity(make_cell, tiny_cards, tmp_path):
    changes = ["model.guidance=2", "model.dtype=bfloat16", "model.uint8=truncate", "model.prompts={}"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    base = overrides("sd_coco", "none", tmp_path, "sampler.steps=4")
    cells = [make_cell(*base), *(make_cell(*base, change.format(prompts)) for change in changes)]
    assert len({canonical_hash(cell.identity) for cell in cells}) == len(cells)


def test_half_precision_runs_and_stays_near(make_cell, tiny_cards, tmp_path):
    base = overrides("sd_coco", "none", tmp_path, "sampler.steps=4", "num_images=2", "iec=none")
    full, half = (run_cell(make_cell(*base, f"model.dtype={dtype}")).first_images(2) for dtype in ("float32", "bfloat16"))
    difference = abs(full.astype(int) - half.astype(int))
    assert 0 < difference.mean() < 8
