import json
import runpy
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iec.errors import ConfigError, StoreError, WeightsError
from iec.io.files import sha256
from iec.models import card
from iec.models.checkpoints.convert import convert
from iec.models.source import Source
from tests.models import checkpoints, original_networks
from tests.models.checkpoints import BLOCKS, LATENT, LEVELS, NAMES, SCALE, save, small, state

AVERAGED = ("ldm_lsun_bedroom", "ldm_lsun_church")


@pytest.fixture
def converted(tmp_path):
    """Converts a small model's checkpoint; ``change(state)`` before."""

    def make(name, change=lambda values: None, legacy=False, facts=None):
        values = state(name)
        change(values)
        path = save(name, values, tmp_path / "model.ckpt", legacy)
        convert(facts or small(name), path, tmp_path / "out")
        return values, tmp_path / "out"

    return make


def load(name, folder):
    return Source.of(small(name), folder).load("cpu")


def below(values, prefix):
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def unet_values(name, values):
    """Of the weights that sample, by the names inside the UNet."""
    if name in AVERAGED:
        return {key: values["model_ema.diffusion_model" + key.replace(".", "")] for key in checkpoints.unet(name)}
    return below(values, "model.diffusion_model.") if name in LATENT else values


def run_original(name, s, x, t):
    if name not in LATENT:
        return original_networks.run_ddpm(s, x, t, len(LEVELS[name]), BLOCKS.get(name, 1))
    if name == "ldm_lsun_church":
        return original_networks.run_openai(s, x, t, lambda c: 8, residual=True)
    return original_networks.run_openai(s, x, t, lambda c: c // 32)


def assert_close(a, b, tolerance=1e-4):
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize(("name", "legacy"), [(n, n == "ddim_cifar") for n in NAMES if n not in ("ldm_imagenet", "sd_coco")])
def test_unconditional_networks_compute_what_the_original_computes(name, legacy, converted):
    values, folder = converted(name, legacy=legacy)
    model = load(name, folder)
    x, t = torch.randn(2, model.card.shape[0], 32, 32), torch.tensor([900, 3])
    assert_close(model.unet(x, t).sample, run_original(name, unet_values(name, values), x, t))


@pytest.mark.parametrize("name", ["ldm_imagenet", "sd_coco"])
def test_conditional_networks_equal_diffusers_conversion(name, converted):
    values, folder = converted(name)
    model = load(name, folder)
    expected = convert_ldm_unet_checkpoint(values, model.unet.config)
    made = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[key], expected[key]) for key in made)


@pytest.mark.parametrize("name", list(LATENT))
def test_decoders_compute_what_the_original_computes(name, converted):
    values, folder = converted(name)
    model = load(name, folder)
    scale = {"ldm_lsun_church": float(torch.tensor(SCALE)), "sd_coco": 0.18215}.get(name, 1.0)
    z = torch.randn(2, model.card.shape[0], 8, 8)
    levels = len(model.card.decoder.config["block_out_channels"])
    expected = original_networks.run_decoder(below(values, "first_stage_model."), 1.0 / scale * z, levels, 1)
    assert model.decoder.scaling_factor == scale
    assert_close(model.decode(z), expected)


@pytest.mark.parametrize("name", ["ldm_lsun_church", "sd_coco"])
def test_kl_autoencoders_equal_diffusers_conversion(name, converted):
    values, folder = converted(name)
    expected = convert_ldm_vae_checkpoint(values, json.loads((folder / "vae" / "config.json").read_text()))
    made = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[key], expected[key].reshape(made[key].shape)) for key in made)


def test_class_table_and_text_encoder(converted):
    values, folder = converted("ldm_imagenet")
    table = load_file(folder / "class_embedding" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(table["weight"], values["cond_stage_model.embedding.weight"])


def test_text_encoder_has_every_tensor_and_a_tokenizer(converted):
    values, folder = converted("sd_coco")
    state_dict = load("sd_coco", folder).conditioner.encoder.model.state_dict()
    original = below(values, "cond_stage_model.transformer.text_model.")
    assert torch.equal(original.pop("embeddings.position_ids"), torch.arange(77)[None])
    assert {k.removeprefix("text_model.") for k in state_dict} == original.keys()
    assert all(torch.equal(v, original[k.removeprefix("text_model.")]) for k, v in state_dict.items())
    assert (folder / "tokenizer" / "vocab.json").is_file()


def test_dtypes_stay_as_stored(converted):
    def halve(values):
        values.update({key: value.half() for key, value in values.items() if key.startswith("conv_")})

    values, folder = converted("ddim_cifar", halve)
    made = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(made["conv_in.weight"], values["conv_in.weight"])
    assert made["conv_in.weight"].dtype == torch.float16
    assert made["mid_block.resnets.0.conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_width_is_converted_with_its_schedule_and_its_scaling_factor(dtype, converted):
    """Buffers that are rounded in the file still belong to the card: they are compared as finely as they are stored."""

    def change(values):
        values.update({key: value.to(dtype) for key, value in values.items() if value.is_floating_point()})

    values, folder = converted("ldm_lsun_church", change)
    made = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in made.values()} == {dtype}
    config = json.loads((folder / "vae" / "config.json").read_text())
    assert config["scaling_factor"] == float(values["scale_factor"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_schedule_or_scaling_factor_is_refused_in_half_precision_too(dtype, converted):
    def change(values):
        values["alphas_cumprod"] = (values["alphas_cumprod"] * 0.98).to(dtype)

    with pytest.raises(WeightsError, match="another noise schedule"):
        converted("ldm_lsun_church", change)


def test_a_rounded_scaling_factor_that_the_card_knows_is_the_cards(converted):
    def change(values, factor=0.18215):
        values["scale_factor"] = torch.tensor(factor, dtype=torch.bfloat16)

    _, folder = converted("sd_coco", change)
    assert json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"] == 0.18215


def test_what_is_no_checkpoint_is_named_before_its_size_is_compared(tmp_path):
    """Sizes and hashes of the real cards; in place of the file something else."""
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "page").write_bytes(b"<!DOCTYPE html>")
    for name, message in {
        "model.safetensors": "is a safetensors file.*model.weights=DIR",
        "pointer": "LFS",
        "page": "web page",
    }.items():
        with pytest.raises(WeightsError, match=message):
            convert(card("ddim_cifar"), tmp_path / name, tmp_path / "out")


def test_the_source_is_recorded(converted, tmp_path):
    _, folder = converted("ldm_lsun_church")
    facts = json.loads((folder / "source.json").read_text())
    path = tmp_path / "model.ckpt"
    assert (facts["file"], facts["size"], facts["sha256"]) == ("model.ckpt", path.stat().st_size, sha256(path))
    assert facts["ema"] is True
    assert facts["url"] == card("ldm_lsun_church").original.url
    for name in ("unet", "vae"):
        with safe_open(folder / name / "diffusion_pytorch_model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "source_sha256": facts["sha256"]}  # and not the file's name, nor the date


BROKEN = {
    "missing": (lambda v: v.pop("model_ema.diffusion_modelout2bias"), "no model_ema.diffusion_modelout2bias"),
    "missing first stage": (lambda v: v.pop("first_stage_model.post_quant_conv.bias"), "no first_stage_model.post_quant_conv.bias"),
    "extra": (lambda v: v.update({"model.other.weight": torch.zeros(3)}), "unknown model.other.weight"),
    "extra ema": (lambda v: v.update({"model_ema.diffusion_modelx": torch.zeros(3)}), "unknown model_ema.diffusion_modelx"),
    "shape": (
        lambda v: v.update({"model_ema.diffusion_modelout0weight": torch.zeros(63)}),
        r"modelout0weight \[63\], not \[64\]",
    ),
    "linear for 1x1": (
        lambda v: v.update({"first_stage_model.decoder.mid.attn_1.q.weight": torch.zeros(64, 64)}),
        r"attn_1.q.weight \[64, 64\], not \[64, 64, 1, 1\]",
    ),
    "integers": (lambda v: v.update({"model_ema.diffusion_modelout2bias": torch.zeros(4, dtype=torch.int64)}), "torch.int64"),
    "no scale": (lambda v: v.pop("scale_factor"), "no scale_factor"),
    "zero scale": (lambda v: v.update({"scale_factor": torch.tensor(0.0)}), "scale_factor is 0.0"),
    "schedule": (lambda v: v.update(alphas_cumprod=v["alphas_cumprod"] * 0.999), "another noise schedule"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_left(case, converted, tmp_path):
    change, message = BROKEN[case]
    with pytest.raises(WeightsError, match=message) as caught:
        converted("ldm_lsun_church", change)
    assert "lsun_churches.zip" in str(caught.value)  # what would be right
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_many_problems_are_counted_and_a_few_named(converted):
    with pytest.raises(WeightsError, match=r"does not fit the card: .*; and \d+ more"):
        converted("ddim_cifar", lambda v: [v.pop(key) for key in list(v)[:20]])


@pytest.mark.parametrize(("name", "message"), [("ldm_lsun_bedroom", "does not hold averaged"), ("ldm_imagenet", "expects none")])
def test_the_wanted_weights_must_be_the_ones_in_the_file(name, message, converted):
    def change(values):
        for key in list(values):
            if key.startswith("model_ema."):
                del values[key]
        if name == "ldm_imagenet":
            values["model_ema.diffusion_modelout2bias"] = torch.zeros(3)

    with pytest.raises(WeightsError, match=message):
        converted(name, change)


def test_the_counters_of_an_average_alone_are_no_average(converted):
    converted("ldm_imagenet", lambda v: v.update({"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(1)}))


def test_another_models_checkpoint_is_refused(tmp_path):
    path = save("ldm_imagenet", state("ldm_imagenet"), tmp_path / "model.ckpt")
    for name in ("ldm_lsun_bedroom", "ddim_cifar", "sd_coco"):
        with pytest.raises(WeightsError):
            convert(small(name), path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["sha256", "md5", "size"])
def test_another_hash_is_refused_before_the_pickle_is_opened(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("iec.models.checkpoints.convert.open_checkpoint", None)
    path = save("ddim_cifar", state("ddim_cifar"), tmp_path / "model.ckpt")
    facts = small("ddim_cifar")
    wrong = replace(facts, original=replace(facts.original, **{kind: 17 if kind == "size" else "0" * 32}))
    with pytest.raises(WeightsError, match=r"model\.ckpt .*another file(.|\n)*Expected: .*heibox"):
        convert(wrong, path, tmp_path / "out")


def test_the_right_hash_is_accepted(tmp_path):
    path = save("ddim_cifar", state("ddim_cifar"), tmp_path / "model.ckpt")
    facts = small("ddim_cifar")
    convert(replace(facts, original=replace(facts.original, sha256=sha256(path))), path, tmp_path / "out")


def test_an_archive_or_the_file_out_of_it(tmp_path):
    path = save("ldm_lsun_church", state("ldm_lsun_church"), tmp_path / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "lsun_churches.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "model.ckpt")
    convert(small("ldm_lsun_church"), path, tmp_path / "a")
    convert(small("ldm_lsun_church"), tmp_path / "lsun_churches.zip", tmp_path / "b")
    for name in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json", "source.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    damaged = bytearray((tmp_path / "lsun_churches.zip").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "lsun_churches.zip").write_bytes(damaged)
    with pytest.raises(WeightsError, match="is damaged"):
        convert(small("ldm_lsun_church"), tmp_path / "lsun_churches.zip", tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "lsun_churches.zip", "model.ckpt"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    path = save("ldm_lsun_church", state("ldm_lsun_church"), tmp_path / "model.ckpt")

    def interrupt(*_):
        assert not (tmp_path / "out").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("iec.models.checkpoints.convert._write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(small("ldm_lsun_church"), path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        convert(small("ddim_cifar"), tmp_path / "missing", tmp_path / "out")


def test_a_missing_file_and_a_model_without_original(tmp_path):
    with pytest.raises(WeightsError, match="is no file"):
        convert(small("ddim_cifar"), tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ConfigError, match="has no original checkpoint"):
        convert(card("ddim_cifar_small"), tmp_path / "missing", tmp_path / "out")


@pytest.fixture
def script(monkeypatch, tmp_path):
    """scripts/convert_checkpoint.py with small models; called with its arguments."""
    monkeypatch.setenv("IEC_MODELS", str(tmp_path / "models"))
    main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"))["main"]

    def run(*arguments, **replaced):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        for name, value in replaced.items():
            monkeypatch.setitem(main.__globals__, name, value)
        main()

    return run


def test_the_script_converts_a_file_and_says_its_unknown_hash(script, tmp_path, capsys):
    path = save("ddim_cifar", state("ddim_cifar"), tmp_path / "model.ckpt")
    script("ddim_cifar", "--checkpoint", path, card=lambda name: small(name) if name == "ddim_cifar" else card(name))
    assert (tmp_path / "models" / "ddim_cifar" / "unet" / "config.json").is_file()
    assert f"sha256 {sha256(path)}" in capsys.readouterr().out


def test_nothing_is_downloaded_for_a_folder_that_is_there(script, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        script("ldm_lsun_church", "--output", tmp_path / "there", download=lambda *_: pytest.fail("gigabytes came"))


def test_the_script_downloads_what_is_not_given(script, tmp_path):
    asked = []

    def download(source, folder):
        asked.append((source.url, folder))
        return tmp_path / "nothing"

    with pytest.raises(WeightsError, match="is no file"):
        script("ldm_lsun_church", download=download)
    assert asked == [(card("ldm_lsun_church").original.url, tmp_path / "models" / "downloads" / "ldm_lsun_church")]


def test_the_script_refuses_another_file(script, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"short")
    with pytest.raises(WeightsError, match=rf"x\.ckpt \(5 bytes\) has md5 \w+, not {card('ddim_cifar').original.md5}"):
        script("ddim_cifar", "--checkpoint", tmp_path / "x.ckpt")
    assert not (tmp_path / "models" / "ddim_cifar").exists()
