"""scripts/train_small.py and scripts/training.py on a tiny network and 8 images."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from iec.errors import ArtifactError, ConfigError, DatasetError, NonFiniteError, WeightsError
from iec.sampling.timetable import NoiseSchedule
from scripts import train_small
from scripts.train_small import arguments, sample_grid, train
from scripts.training import RECIPES, Recipe, Training, batch_of_step, load_weights, loss_weight, read_images, stratified

BUNDLED = Path(__file__).parents[1] / "iec/models/ddim_cifar_small"
TINY = Recipe(lambda root: IMAGES.numpy(), 1, (8, 16), 1, flips=False, learning_rate=1e-3, warm_up=2)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8))


@pytest.fixture
def make(tmp_path, monkeypatch, one_thread):
    """A tiny training from options, in the test's folder."""
    monkeypatch.setattr(train_small, "sample_grid", lambda training: np.zeros((2, 2, 3), np.uint8))

    def build(*options):
        common = ("ddim_fashion_small", "--output", str(tmp_path), "--batch", "4", "--device", "cpu", "--autocast", "none")
        return Training(TINY, arguments([*common, *options]), torch.device("cpu"))

    return build


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(training, stop=()):
    train(training, IMAGES, stop)
    return training


def same(one, other):
    """Whether two trainings are in the same state, bit for bit."""
    moments = zip(one.optimiser.state.values(), other.optimiser.state.values(), strict=True)
    return (
        (one.step, one.begin) == (other.step, other.begin)
        and all(torch.equal(value, other.ema[name]) for name, value in one.ema.items())
        and all(torch.equal(value, other.model.state_dict()[name]) for name, value in one.model.state_dict().items())
        and all(torch.equal(a[key], b[key]) for a, b in moments for key in a)
    )


def test_resumed_and_cooled_down_states(make, tmp_path):
    through = run(make("--steps", "4", "--output", str(tmp_path / "through")))
    run(make("--steps", "2"))
    before = (tmp_path / "constant/state.pt").read_bytes()

    cold = run(make("--cool-down", "3"))
    assert (cold.begin, cold.step) == (2, 5)
    assert (tmp_path / "constant/state.pt").read_bytes() == before
    assert same(run(make("--steps", "4")), through)

    assert same(run(make("--cool-down", "3")), cold)  # although the constant phase has moved on
    assert not same(cold, through)
    with pytest.raises(ConfigError, match=r"made with \{'cool_down': 3\}.*another --output"):
        run(make("--cool-down", "4"))
    with pytest.raises(ConfigError, match=r"made with \{'seed': 0\}"):
        run(make("--seed", "1"))
    assert UNet2DModel.from_pretrained(tmp_path / "cool_down/ema").config.block_out_channels == [8, 16]
    assert (tmp_path / "cool_down/samples/0000005.png").is_file()


def test_a_cool_down_is_resumable_and_needs_a_state(make, monkeypatch, tmp_path):
    with pytest.raises(ArtifactError, match="nothing to cool down"):
        run(make("--cool-down", "2"))
    run(make("--steps", "1"))
    stop, advance = train_small.watch_signals(), Training.advance

    def interrupted(training, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(training, images)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", interrupted)
        assert run(make("--cool-down", "2"), stop).step == 2
    assert stop == [signal.SIGTERM]
    halves = run(make("--cool-down", "2"))
    (tmp_path / "cool_down/state.pt").unlink()
    assert same(run(make("--cool-down", "2")), halves)


def test_the_rate_rises_stays_and_falls_to_zero(make):
    constant, cold = make(), make("--cool-down", "4")
    rates = []
    for constant.step in range(4):
        rates.append(constant.learning_rate())
    cold.begin = 10
    for cold.step in range(10, 15):
        rates.append(cold.learning_rate())
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4, 0])


def test_a_given_rate_and_a_time_limit(make, tmp_path):
    training = make("--learning-rate", "0.25", "--minutes", "1e-9", "--steps", "9")
    training.step = 5
    assert training.learning_rate() == 0.25
    training.step = 0
    assert run(training).step == 1
    with pytest.raises(ConfigError, match=r"made with \{'learning_rate': 0.25\}"):
        run(make())
    for option in ("--learning-rate", "--minutes"):
        with pytest.raises(ConfigError, match="positive numbers"):
            arguments(["ddim_cifar_small", option, "0"])


def test_a_compiled_training_is_the_same_training(make, monkeypatch, tmp_path):
    plain, modes = run(make("--steps", "2")), []
    monkeypatch.setattr(torch, "compile", lambda model, **options: modes.append(options) or (lambda x, t: model(x, t)))
    compiled = run(make("--steps", "2", "--compile", "reduce-overhead", "--output", str(tmp_path / "compiled")))
    assert modes == [{"mode": "reduce-overhead", "dynamic": False}]
    assert same(plain, compiled)


def test_images_may_be_one_file_of_numpy(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    assert np.array_equal(read_images(TINY, tmp_path / "images.npy"), IMAGES.numpy())
    assert np.array_equal(read_images(TINY, tmp_path), IMAGES.numpy())
    np.save(tmp_path / "floats.npy", IMAGES.float().numpy())
    with pytest.raises(DatasetError, match=r"float32 \[8, 32, 32, 1\] in place of uint8"):
        read_images(TINY, tmp_path / "floats.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DatasetError, match=r"numpy\.save"):
        read_images(TINY, tmp_path / "text.npy")


def test_a_loss_that_is_not_finite_is_not_saved(make, tmp_path):
    training = make("--steps", "1")
    training.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="Try --autocast none"):
        run(training)
    assert not (tmp_path / "constant/state.pt").exists()


def test_one_timestep_in_each_stratum():
    for n in range(20):
        t = stratified(np.random.default_rng(n), 64)
        assert t.dtype == np.int64 and t.min() >= 0 and t.max() <= 999
        edges = 1000 * (np.arange(65) / 64) ** 2
        assert np.all((t >= np.floor(edges[:-1])) & (t <= edges[1:]))
    share = np.mean(stratified(np.random.default_rng(0), 10_000) < 10)
    assert share == pytest.approx(math.sqrt(10 / 1000), abs=1e-4)


def test_weight_is_a_mixture_of_min_snr_and_one():
    abar = NoiseSchedule().abar
    snr = abar / (1 - abar)
    min_snr = np.minimum(snr, 5) / snr
    assert min_snr[0] == pytest.approx(5e-4, rel=0.01)
    for p in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(loss_weight(torch.from_numpy(abar), p), (1 - p) * min_snr + p, rtol=1e-6)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        arguments(["ddim_cifar_small", "--unweighted", "2"])


def test_the_batch_depends_on_seed_and_step_alone():
    first, again = (batch_of_step(IMAGES, 5, 16, seed=1, flips=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], batch_of_step(IMAGES, 6, 16, seed=1, flips=False)[2])
    x = batch_of_step(IMAGES, 5, 16, seed=1, flips=True)[0]
    kept = [torch.equal(a, b) for a, b in zip(x, first[0], strict=True)]
    assert 0 < sum(kept) < 16
    assert all(torch.equal(a, b if same else b.flip(-1)) for a, b, same in zip(x, first[0], kept, strict=True))


def test_the_recipe_is_the_bundled_network(make, tmp_path):
    network = RECIPES["ddim_cifar_small"].network()
    load_weights(network, BUNDLED)
    stored = load_file(BUNDLED / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value.half(), stored[name]) for name, value in network.state_dict().items())
    ours, bundled = json.loads(network.to_json_string()), json.loads((BUNDLED / "config.json").read_text())
    assert {**ours, "_diffusers_version": bundled["_diffusers_version"]} == bundled
    for path in (tmp_path, BUNDLED):
        with pytest.raises(WeightsError, match="Name a safetensors file of it"):
            make("--init", str(path))


def test_pictures_are_of_the_averaged_weights(make):
    training = make()
    pictures = sample_grid(training, count=8, steps=2)
    assert pictures.shape == (64, 8 * 66 - 2, 3)
    for value in training.model.parameters():
        value.data.zero_()
    assert np.array_equal(sample_grid(training, count=8, steps=2), pictures)
    training.ema = training.model.state_dict()
    assert not np.array_equal(sample_grid(training, count=8, steps=2), pictures)
