"""DiT: a transformer in place of the UNet, told its class by a number, whose second half of channels is dropped."""

import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import DiTPipeline
from safetensors.torch import load_file, save_file

from iec.efficiency.cost import model_cost, operations
from iec.efficiency.engine.__main__ import main as export
from iec.errors import MismatchError, WeightsError
from iec.models import card
from iec.models.architecture import build, differences
from iec.models.conditioning import label
from iec.models.files import CONFIG, WEIGHTS
from iec.models.source import Source
from iec.models.weights import find
from iec.runs.runner import run_cell
from iec.sampling.ddim import Sampler
from iec.sampling.network import Step
from iec.sampling.noise import Noise
from iec.sampling.timetable import Timetable
from tests.models.tiny import scheduler, tiny, write

NAME, STEPS, INDICES = "dit_imagenet", 5, (0, 1)
HUB_CONFIG = {
    "_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "activation_fn": "gelu-approximate",
    "attention_bias": True, "cross_attention_dim": None, "dropout": 0.0, "norm_elementwise_affine": False, "norm_num_groups": 32,
    "norm_type": "ada_norm_zero", "num_vector_embeds": None, "only_cross_attention": False, "upcast_attention": False,
    "use_linear_projection": False,
}  # fmt: skip
"""Beside the sizes, what diffusers wrote before DiT had a class of its own."""


def model_of(**options):
    return Source.of(tiny(NAME), random_weights=True, **options).load("cpu")


def as_on_the_hub(folder):
    """The transformer's configuration in a folder, as an early release wrote it."""
    path = folder / "transformer" / CONFIG
    sizes, stored = tiny(NAME).components["transformer"].config, json.loads(path.read_text())
    path.write_text(json.dumps({key: stored[key] for key in sizes} | HUB_CONFIG))


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_every_state_equals_that_of_the_pipeline(guidance, monkeypatch):
    model = model_of(guidance=guidance)
    noise = Noise(3, INDICES, model.card.shape)
    table = Timetable.spaced("uniform", STEPS, model.card.schedule, final=-1)
    ours = list(Sampler(table).trajectory(model.guided(model.network), noise, model.cond(INDICES)))

    states, steps = [], scheduler(model.card)
    step = steps.step
    monkeypatch.setattr(steps, "step", lambda *args: states.append(step(*args)) or states[-1])
    monkeypatch.setattr(f"{DiTPipeline.__module__}.randn_tensor", lambda *_, **__: noise.initial(torch.float32, "cpu"))
    pipe = DiTPipeline(model.unet, model.decoder.module, steps)
    pipe.set_progress_bar_config(disable=True)
    labels = [label(n) for n in INDICES]
    images = pipe(labels, guidance_scale=guidance, num_inference_steps=STEPS, output_type="np").images
    assert len(states) == STEPS == len(ours) - 1
    for own, theirs in zip(ours[1:], states, strict=True):
        assert (own - theirs.prev_sample[: len(own)]).abs().max() <= 1e-5 * own.abs().max()
    decoded = (model.decode(ours[-1]) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(decoded, torch.as_tensor(images), atol=1e-4, rtol=0)


def test_labels_are_numbers_beside_the_unconditional_class():
    model = model_of()
    cond = model.cond((0, 1, 7))
    assert cond.tolist() == [[1000, label(0)], [1000, label(1)], [1000, label(7)]] and cond.dtype == torch.int64
    x = torch.randn(1, *model.card.shape).expand(3, -1, -1, -1)
    eps = model.network(x, Step(0, 500), cond[:, 1]).eps
    assert eps.shape == x.shape and not torch.equal(eps[0], eps[1])
    assert model.identity["conditioning"] == Source.of(tiny("ldm_imagenet"), random_weights=True).conditioning


QUANTIZED = ["efficiency=w8a8", "efficiency.calibration_images=2", "efficiency.scale_rule=max"]


@pytest.mark.parametrize("more", [[], QUANTIZED, ["efficiency=error_rounding"], ["corrector=dcw"], ["sampler=unipc", "iec=none"]])
def test_a_cell_runs_from_noise_to_images(make_cell, tiny_cards, tmp_path, more):
    base = [f"model={NAME}", "model.random_weights=true", "iec=all_steps", "sampler.steps=4", f"paths.output={tmp_path}"]
    result = run_cell(make_cell(*base, *more))
    calls, size = result.manifest.calls_per_image, result.cell.card.resolution
    assert (calls["full"], calls["correction"]) == (4, 0 if "iec=none" in more else 4)
    assert result.first_images(3).shape == (3, size, size, 3) and result.cost.cached is None


def test_the_cost_of_both_branches_is_that_of_the_layers_and_of_attention():
    """Of the real network: 12 C^2 a token and block, 2 N^2 C of attention, 6 C^2 of each modulation, and the ends."""
    component = card(NAME).components["transformer"]
    full, cached = operations(build(component, device="meta"), card(NAME).shape, torch.zeros(1, dtype=torch.int64))
    tokens, width, blocks = 256, 1152, 28
    embedding = 256 * width + width**2
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2 + embedding
    ends = tokens * width * 16 + embedding + 2 * width**2 + tokens * width * 32
    assert sum(o.macs for o in full) == blocks * block + ends == 118_666_838_016 and cached == []
    one, two = (model_cost(model_of(guidance=w), 0).full.macs for w in (1, 4))
    assert two == 2 * one > 0


@pytest.mark.parametrize("efficiency", ["deepcache", "cachequant_w4a8"])
def test_what_needs_a_unet_is_refused_by_name_before_anything_is_loaded(make_cell, tmp_path, efficiency):
    with pytest.raises(MismatchError, match=r"dit_imagenet is a transformer: it has no skip.*Use efficiency=none"):
        make_cell(f"model={NAME}", "model.random_weights=true", f"efficiency={efficiency}", f"paths.output={tmp_path}")


def test_its_network_is_not_exported(tiny_cards, tmp_path):
    with pytest.raises(MismatchError, match="is a transformer"):
        export([str(tmp_path / "file.onnx"), f"model={NAME}", "model.random_weights=true", "device=cpu"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_the_hub_is_loaded_bit_for_bit_with_the_positions_that_no_file_holds(tmp_path, dtype):
    facts = tiny(NAME)
    write(facts, tmp_path)
    as_on_the_hub(tmp_path)
    model, expected = Source.of(facts, tmp_path, dtype=dtype).load("cpu"), model_of(dtype=dtype)
    for own, other in ((model.unet, expected.unet), (model.decoder.module, expected.decoder.module)):
        pairs = zip([*own.parameters(), *own.buffers()], [*other.parameters(), *other.buffers()], strict=True)
        assert all(torch.equal(a, b) and not a.is_meta for a, b in pairs)
    assert model.unet.pos_embed.pos_embed.abs().sum() > 0 and model.decoder.scaling_factor == 0.18215


def test_the_size_of_the_latents_belongs_to_the_weights():
    """The model for 512 x 512 has tensors of the same names and shapes."""
    component = card(NAME).components["transformer"]
    assert differences(component, component.config | HUB_CONFIG) == []
    assert differences(component, {**component.config, "sample_size": 64}) == ["sample_size: 64 in the folder, 32 in the card"]
    with pytest.raises(WeightsError, match="is the model for 512 x 512 pixels"):
        find(card(NAME), "facebook/DiT-XL-2-512")


def test_missing_weights_say_which_files_from_where_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("IEC_MODELS", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        find(card(NAME))
    for part in (
        str(tmp_path / NAME / "transformer" / CONFIG), f"transformer/{WEIGHTS}, vae/{WEIGHTS}", "CC BY-NC 4.0",
        "hash                     not known to us",
        "https://huggingface.co/facebook/DiT-XL-2-256/tree/refs/pr/1", f"python -m iec run model={NAME} model.weights=hub",
        "model.weights=DIR with transformer/, vae/", "model.random_weights=true",
    ):  # fmt: skip
        assert part in str(caught.value), part
    assert "iec convert" not in str(caught.value)


def test_the_hub_is_asked_for_the_revision_with_safetensors_and_for_no_pickle(tmp_path, monkeypatch):
    facts, asked = tiny(NAME), []
    write(facts, tmp_path)
    monkeypatch.setattr("iec.models.weights.hub_folder", lambda *args: asked.append(args) or tmp_path)
    assert Source.of(facts, "hub").load("cpu").weights_hash != "random"
    ((repository, revision, patterns, _),) = asked
    assert (repository, revision) == ("facebook/DiT-XL-2-256", "refs/pr/1")
    assert patterns == [f"{part}/{name}" for part in ("transformer", "vae") for name in (CONFIG, WEIGHTS)]


def test_the_way_out_of_the_pickles_of_the_main_branch_works(tmp_path):
    facts = tiny(NAME)
    write(facts, tmp_path)
    as_on_the_hub(tmp_path)
    home = tmp_path / "transformer"
    torch.save(load_file(home / WEIGHTS), home / "diffusion_pytorch_model.bin")
    (home / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match="a pickle, which is not opened. If you trust") as caught:
        find(facts, tmp_path)
    exec(re.search(r'python -c "(.*)"', str(caught.value))[1], {})
    assert find(facts, tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("change", "message"), [("drop", "no proj_out_2.bias"), ("add", "unknown extra"), ("layer", "unknown transformer_")]
)
def test_every_tensor_has_its_place(tmp_path, change, message):
    facts = tiny(NAME)
    component = facts.components["transformer"]
    longer = replace(component, config={**component.config, "num_layers": 3})
    write(facts, tmp_path)
    file = tmp_path / "transformer" / WEIGHTS
    state = build(longer).state_dict() if change == "layer" else load_file(file)
    if change == "drop":
        del state["proj_out_2.bias"]
    elif change == "add":
        state["extra"] = torch.zeros(1)
    save_file(state, file)
    with pytest.raises(WeightsError, match=f"does not fit the architecture.*{message}"):
        Source.of(facts, tmp_path).load("cpu")
