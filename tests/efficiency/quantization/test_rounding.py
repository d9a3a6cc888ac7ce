import pytest
import torch
from torch import nn

from iec.efficiency.quantization import PTQConfig
from iec.efficiency.quantization.layers import QuantLayer
from iec.efficiency.quantization.rounding import LearnedRounding, annealed, rounding_of, undecided, variable_of
from iec.efficiency.quantization.steps import StepContext


def layer_of(kind="conv", bits=4, split=None):
    made = {"conv": lambda: nn.Conv2d(6, 5, 3), "linear": lambda: nn.Linear(6, 5)}[kind]()
    made.requires_grad_(False)
    return QuantLayer(made, "layer", PTQConfig(weight_bits=bits), StepContext(2), split)


def learned(layer):
    return LearnedRounding(layer.layer.weight, *layer.weight_grid())


def test_the_variable_of_a_rounding_is_its_inverse():
    h = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(rounding_of(variable_of(h)), h, rtol=0, atol=1e-12)
    assert rounding_of(torch.tensor([-50.0, 50.0])).tolist() == [0, 1]
    assert (variable_of(h) >= 0).equal(h >= 0.5)


@pytest.mark.parametrize(("kind", "split"), [("conv", None), ("conv", 2), ("linear", None)])
def test_before_training_the_weight_is_the_float_one_within_the_grid(kind, split):
    layer = layer_of(kind, split=split)
    delta, low, high = layer.weight_grid()
    weight = layer.layer.weight
    expected = torch.minimum(torch.maximum(weight, low * delta), high * delta)
    torch.testing.assert_close(learned(layer).weight(), expected, rtol=0, atol=1e-6)
    assert (weight == expected).float().mean() > 0.5


@pytest.mark.parametrize("split", [None, 2])
def test_hardened_before_training_it_is_rounding_to_nearest(split):
    """Halves aside: 1[v >= 0] rounds them up, rounding to nearest takes the even neighbour; random weights have none."""
    layer = layer_of(split=split)
    nearest = layer.quantized_weight.clone()
    layer.set_rounding(learned(layer).rounded_up())
    assert torch.equal(layer.quantized_weight, nearest)
    layer.set_rounding(~layer.rounding())
    assert (layer.quantized_weight != nearest).float().mean() > 0.9
    layer.set_rounding(None)
    assert torch.equal(layer.quantized_weight, nearest)


def test_the_nearest_rounding_is_told_as_what_it_is_also_for_halves():
    layer = layer_of("linear")
    layer.layer.weight.copy_(layer.weight_grid()[0] * torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.0, 0.2]))
    layer.refresh()
    nearest = layer.quantized_weight.clone()
    layer.set_rounding(layer.rounding())
    assert torch.equal(layer.quantized_weight, nearest)


def test_every_weight_stays_on_the_grid_beside_its_float_value():
    layer = layer_of(bits=8)
    delta, low, high = layer.weight_grid()
    layer.set_rounding(torch.rand(layer.layer.weight.shape) < 0.5)
    steps = layer.quantized_weight / delta
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    inside = (layer.layer.weight / delta > low) & (layer.layer.weight / delta < high)
    assert ((layer.quantized_weight - layer.layer.weight).abs() <= delta * 1.001)[inside].all()
    assert (steps.round() >= low).all() and (steps.round() <= high).all()


def test_the_regularizer_by_hand():
    assert undecided(torch.tensor([0.0, 1.0, 0.5, 0.25]), 2.0) == 1 + 1 - 0.25
    h = torch.tensor([0.05, 0.5, 0.95])
    assert undecided(h, 20.0) > undecided(h, 2.0) > 1


def test_the_exponent_falls_from_the_warm_up_on():
    betas = [annealed(20, 2, k, 10, 0.2) for k in range(10)]
    assert betas[:2] == [None, None] and betas[2] == 20
    assert betas[3:] == pytest.approx([20 - 18 * k / 8 for k in range(1, 8)])
    assert annealed(20, 2, 0, 10, 0.0) == 20
