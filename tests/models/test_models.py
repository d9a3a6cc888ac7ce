import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from iec.errors import ConfigError, DeviceError, NonFiniteError, WeightsError
from iec.models import card, load_model
from iec.models.cards import FOLDER
from iec.models.source import Source
from iec.models.weights import CONFIG, WEIGHTS
from iec.sampling.network import Step

NAME = "ddim_cifar_small"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FOLDER / NAME, tmp_path / "copy")


@pytest.mark.parametrize(("name", "parameters", "channels"), [(NAME, 4_180_451, 3), ("ddim_fashion_small", 2_567_857, 1)])
def test_a_bundled_model_is_what_its_card_says(name, parameters, channels):
    model = load_model(name, device="cpu")
    assert sum(p.numel() for p in model.unet.parameters()) == card(name).parameters == parameters
    assert not model.unet.training and model.weights_hash == card(name).packaged.sha256
    out = model.network(torch.randn(2, *card(name).shape, dtype=torch.float64), Step(0, 500)).eps
    assert out.shape == (2, channels, 32, 32) and out.dtype == torch.float32


@pytest.mark.parametrize("name", [NAME, "ddim_fashion_small"])
def test_it_predicts_noise(name):
    """On a smooth synthetic image at a middle timestep most of the noise is found."""
    model = load_model(name, device="cpu")
    a = card(name).schedule.at(400)
    ramp = torch.linspace(-1, 1, 32).expand(4, *card(name).shape)
    noise = torch.randn(4, *card(name).shape)
    eps = model.network(a**0.5 * ramp + (1 - a) ** 0.5 * noise, Step(0, 400)).eps
    assert ((eps - noise).norm() / noise.norm()).item() < 0.35


def test_random_weights_are_the_same_every_time_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    a, b = (load_model(NAME, device="cpu", random_weights=True) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state()) and a.weights_hash == "random"
    assert all(torch.equal(p, q) for p, q in zip(a.unet.parameters(), b.unet.parameters(), strict=True))


@torch.no_grad()
def test_channels_last_is_the_order_of_the_weights_in_memory_and_changes_their_sums_by_rounding():
    plain, other = (load_model("ddim_fashion_small", device="cpu", channels_last=value) for value in (False, True))
    assert other.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert other.identity == {**plain.identity, "channels_last": True}
    x = torch.randn(1, *plain.card.shape)
    torch.testing.assert_close(other.network(x, Step(0, 500)).eps, plain.network(x, Step(0, 500)).eps, atol=1e-5, rtol=1e-5)


def test_a_local_folder_is_used_and_recorded(copy):
    held = load_model(NAME, device="cpu", weights=copy).weights_hash
    assert held.startswith(card(NAME).packaged.sha256)
    config = copy / CONFIG
    config.write_text(config.read_text().replace('"norm_eps": 1e-06', '"norm_eps": 0.01'))
    assert Source.of(NAME, copy).weights_hash != held  # the same tensors, another network
    assert Source.of(NAME, copy, random_weights=True).weights_hash != "random"
    state = load_file(copy / WEIGHTS)
    state["conv_in.bias"] += 1
    save_file(state, copy / WEIGHTS)
    assert not Source.of(NAME, copy).weights_hash.startswith(card(NAME).packaged.sha256)


def test_missing_truncated_and_foreign_weights_are_refused(copy, monkeypatch):
    with pytest.raises(WeightsError, match=r"nowhere.*model\.weights"):
        load_model(NAME, device="cpu", weights=copy / "nowhere")
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="truncated"):
        load_model(NAME, device="cpu", weights=copy)
    monkeypatch.setattr("iec.models.weights.FOLDER", copy.parent)
    (copy.parent / NAME).symlink_to(copy)
    with pytest.raises(WeightsError, match="is damaged.*expected " + card(NAME).packaged.sha256):
        load_model(NAME, device="cpu")


@pytest.mark.parametrize("change", ["drop", "add", "shape"])
def test_loading_is_strict(copy, change):
    state = load_file(copy / WEIGHTS)
    if change == "drop":
        del state["conv_in.bias"]
    elif change == "add":
        state["extra"] = torch.zeros(1)
    else:
        state["conv_in.bias"] = torch.zeros(7)
    save_file(state, copy / WEIGHTS)
    with pytest.raises(WeightsError, match=f"does not fit the architecture of .*{CONFIG}"):
        load_model(NAME, device="cpu", weights=copy)


def test_unknown_model_and_device():
    with pytest.raises(ConfigError, match=NAME):
        load_model("ddim_mars")
    with pytest.raises(DeviceError, match="Use auto or cpu in its place"):
        load_model(NAME, device="warp")


def test_images_that_are_not_finite_are_no_images():
    model = load_model(NAME, device="cpu", random_weights=True)
    decoded = replace(model, decoder=lambda x: x / 0)
    with pytest.raises(NonFiniteError, match="Use a wider dtype"):
        decoded.decode(torch.ones(1, 3, 4, 4))
