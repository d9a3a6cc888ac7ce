"""Errors added on purpose: their size is what is asked for, on trained and ideal networks, whatever the batch or the process."""

import json

import pytest
import torch

from iec.efficiency.added_errors import ErrorGain, ErrorNoise, ErrorRounding, ErrorSmooth, ErrorStale
from iec.efficiency.cost import CallCost
from iec.efficiency.technique import technique_of
from iec.errors import ConfigError
from iec.models.ideal import IdealNetwork
from iec.models.source import Source
from iec.runs.runner import run_cell
from iec.sampling.ddim import Sampler
from iec.sampling.guidance import GuidedNetwork
from iec.sampling.network import CountingNetwork, FeatureCache, Prediction, Step
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable

SHAPE, STEP = (1, 4, 4), Step(3, 400)
X = Noise(0, (0, 1, 2), SHAPE).initial()
RANDOM = "model.random_weights=true"
SMALL = ["sampler.steps=4", "num_images=3", "batch_size=3", "metrics=none"]


def wave(x, step, cond=None, cache=None):
    return Prediction(torch.sin(3 * x) + step.timestep / 1000)


def error(technique, x=X, step=STEP):
    return technique.disturbed(wave)(x, step).eps - wave(x, step).eps


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_rounding_leaves_so_many_levels_over_the_range_of_the_call(bits):
    exact, rounded = wave(X, STEP).eps, ErrorRounding(bits).disturbed(wave)(X, STEP).eps
    spacing = (exact.max() - exact.min()) / (2**bits - 1)
    assert len(rounded.unique()) <= 2**bits and (rounded - exact).abs().max() <= spacing / 2 + 1e-12
    torch.testing.assert_close(rounded.aminmax(), exact.aminmax())
    constant = torch.zeros_like(X)
    assert torch.equal(ErrorRounding(bits).rounded(constant, X, STEP), constant)


def test_gain_is_a_factor():
    torch.testing.assert_close(error(ErrorGain(1.25)), 0.25 * wave(X, STEP).eps)
    assert not error(ErrorGain(1.0)).any()


def test_noise_depends_on_the_seed_the_step_and_the_image_alone():
    large = Noise(1, tuple(range(8)), (1, 32, 32)).initial()
    noise = error(ErrorNoise(0.1), large)
    assert noise.std().item() == pytest.approx(0.1, rel=0.05) and abs(noise.mean().item()) < 0.01
    torch.testing.assert_close(error(ErrorNoise(0.3), large), 3 * noise)
    torch.testing.assert_close(error(ErrorNoise(0.1), large[[5, 2]]), noise[[5, 2]])  # in any batch and order
    correction = Step(STEP.index, STEP.timestep, "full", 1)
    torch.testing.assert_close(error(ErrorNoise(0.1), large, correction), noise)  # the same x, the same eps: a function
    for other in (
        error(ErrorNoise(0.1, seed=1), large),
        error(ErrorNoise(0.1), large, Step(4, STEP.timestep)),
        error(ErrorNoise(0.1), large + 1e-12),
        noise.roll(1, 0),
    ):
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1].item()) < 0.05


def test_noise_is_once_in_a_guided_prediction():
    def labelled(x, step, cond, cache=None):
        return Prediction(wave(x, step).eps * cond.view(-1, 1, 1, 1))

    cond = torch.tensor([[1.0, 2.0]]).expand(3, 2)
    exact = GuidedNetwork(labelled, 3.0)(X, STEP, cond).eps
    disturbed = GuidedNetwork(ErrorNoise(0.1).disturbed(labelled), 3.0)(X, STEP, cond).eps
    torch.testing.assert_close(disturbed - exact, error(ErrorNoise(0.1)))


def test_stale_predictions_are_those_of_the_last_refresh():
    table, technique = Timetable.spaced("uniform", 5, NoiseSchedule()), ErrorStale(2)
    assert technique.refresh(5) == {0, 2, 4}
    counted = CountingNetwork(technique.disturbed(wave))
    states = list(Sampler(table, refresh=technique.refresh(5)).trajectory(counted, Noise(0, (0, 1), SHAPE)))
    assert (counted.calls.full, counted.calls.cached) == (6, 4)
    eps = wave(states[2], Step(2, table.pairs[2][0])).eps
    stale = technique.disturbed(wave)(states[3], Step(3, table.pairs[3][0], "cached"), cache=FeatureCache(eps, Step(2, 400))).eps
    assert torch.equal(stale, eps)
    with pytest.raises(ConfigError, match="Make the first step a refresh step"):
        technique.disturbed(wave)(X, Step(1, 600, "cached"))


def test_a_smooth_posterior_is_the_ideal_networks_with_another_variance():
    data, schedule = torch.rand(6, *SHAPE), NoiseSchedule()
    exact, smooth = IdealNetwork(data, schedule), ErrorSmooth(1.5).disturbed(IdealNetwork(data, schedule))
    assert torch.equal(smooth(X, STEP).eps, IdealNetwork(data, schedule, 1.5)(X, STEP).eps)
    assert torch.equal(ErrorSmooth(1.0).disturbed(exact)(X, STEP).eps, exact(X, STEP).eps)
    with pytest.raises(ConfigError, match="Use another error"):
        ErrorSmooth().disturbed(wave)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["efficiency=error_rounding", "efficiency.bits=0"], r"whole number of 1 \.\. 16"),
        (["efficiency=error_rounding", "efficiency.bits=17"], r"whole number of 1 \.\. 16"),
        (["efficiency=error_gain", "efficiency.gain=0"], r"\(0, 2\]"),
        (["efficiency=error_gain", "efficiency.gain=nan"], r"\(0, 2\]"),
        (["efficiency=error_noise", "efficiency.std=-1"], r"\[0, 10\]"),
        (["efficiency=error_noise", "efficiency.seed=-1"], r"2\^64 - 1"),
        (["efficiency=error_stale", "efficiency.interval=21"], r"1 \.\. 20"),
        (["efficiency=error_smooth", "efficiency.variance=0", "model=ideal_fashion"], r"\(0, 1000\]"),
        (["efficiency=error_smooth"], "ddim_cifar_small is a trained one. Use model=ideal_fashion"),
    ],
)
def test_bad_errors_are_refused_before_anything_is_loaded(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell(*overrides)


@pytest.mark.parametrize("name", ["rounding", "gain", "noise", "stale", "smooth"])
def test_every_error_is_a_cell_that_goes_on_to_the_same_bytes(make_cell, tmp_path, name):
    """On an ideal model, with corrections; its fields are its identity."""
    overrides = ["model=ideal_cifar", RANDOM, f"efficiency=error_{name}", "iec=all_steps", *SMALL]
    cell = make_cell(*overrides, f"paths.output={tmp_path / 'a'}")
    assert cell.identity["efficiency"]["technique"] == f"Error{name.capitalize()}" and "source" not in cell.identity["efficiency"]
    (field,) = cell.identity["efficiency"].keys() - {"technique", "seed"}
    assert cell.identity["efficiency"][field] == getattr(cell.technique, field)
    first = run_cell(cell)
    again = run_cell(make_cell(*overrides, f"paths.output={tmp_path / 'b'}"))
    assert (first.first_images(3) == again.first_images(3)).all()
    plain = run_cell(make_cell("model=ideal_cifar", RANDOM, "iec=all_steps", *SMALL, f"paths.output={tmp_path}"))
    assert not (first.first_images(3) == plain.first_images(3)).all() or name == "smooth"
    assert first.cost.full == plain.cost.full == CallCost(2 * 64 * 3072, 2 * 64 * 3072 * 1024)
    assert first.cost.cached == (CallCost() if name == "stale" else None)


def test_they_work_on_a_trained_network():
    model = Source.of("ddim_cifar_small", random_weights=True).load("cpu")
    x, table = torch.randn(2, 3, 32, 32), Timetable.spaced("quad", 4, NoiseSchedule())
    exact = model.network(x, STEP).eps
    for technique in (ErrorRounding(4), ErrorGain(1.1), ErrorNoise(0.1), ErrorStale(2)):
        prepared = technique.prepare(model, table, None)
        eps = prepared.network(x, STEP).eps
        assert eps.dtype == exact.dtype and torch.equal(eps, exact) == isinstance(technique, ErrorStale)
        assert prepared.cost.full.macs > 1e6


def test_it_is_made_from_its_configuration():
    made = technique_of({"name": "x", "_target_": "iec.efficiency.added_errors.ErrorGain", "gain": 1.5})
    assert made == ErrorGain(1.5) and json.dumps(made.identity(None, 4)) == '{"technique": "ErrorGain", "gain": 1.5}'
