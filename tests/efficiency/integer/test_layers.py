import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from iec.efficiency.integer import IntegerLayer
from iec.efficiency.integer.passes import Passes
from iec.efficiency.quantization import PTQConfig
from iec.efficiency.quantization.layers import NoWeightError, QuantLayer
from iec.efficiency.quantization.steps import StepContext
from iec.errors import ArtifactError

STEPS = 3


def quant_layer(inner, split=None, calibrate=(0, 1), shape=(4, 24, 9, 8), **settings):
    """Calibrated at the steps ``calibrate`` on inputs of different scales."""
    context = StepContext(STEPS)
    layer = QuantLayer(inner, "layer", PTQConfig(scale_rule="max", **settings), context, split)
    for step in calibrate:
        with context.calibrating(step), torch.no_grad():
            layer((1 + step) * torch.randn(shape) + 0.3)
    return layer


def exact(layer, x, step):
    """The layer's formula in float64, on the values of its grids."""
    inner = copy.deepcopy(layer.layer).double().requires_grad_(False)
    with layer.context.reading(step), torch.no_grad():
        weight, bias = layer.weight_codes().double() * layer.weight_grid()[0].double(), inner.bias
        if layer.alpha is not None:
            first = weight[:, layer.parts[0]] * layer.alpha[step].double().view(-1, 1, 1, 1)
            weight = torch.cat([first, weight[:, layer.parts[1]]], dim=1)
            bias = bias + layer.beta[step]
        halves = [x] if layer.split is None else [x[:, part] for part in layer.parts]
        values = [quantizer(half).double() for half, quantizer in zip(halves, layer.inputs, strict=True)]
        xq = values[0] if layer.split is None else torch.cat(values, 1)
    return inner._conv_forward(xq, weight, bias) if isinstance(inner, nn.Conv2d) else F.linear(xq, weight, bias)


LAYERS = {
    "padded": (lambda: nn.Conv2d(24, 16, 3, padding=1), {}),
    "strided": (lambda: nn.Conv2d(24, 16, 3, padding=1, stride=2), {}),
    "groups": (lambda: nn.Conv2d(24, 16, 3, padding=1, groups=4), {}),
    "split": (lambda: nn.Conv2d(24, 16, 3, padding=1), {"split": 10}),
    "shortcut": (lambda: nn.Conv2d(24, 16, 1), {"split": 15}),
    "w4": (lambda: nn.Conv2d(24, 16, 3, padding=1), {"weight_bits": 4, "split": 10}),
    "w5a6": (lambda: nn.Conv2d(24, 16, 3, padding=1), {"weight_bits": 5, "activation_bits": 6}),
    "symmetric": (lambda: nn.Conv2d(24, 16, 3, padding=1), {"weight_symmetric": True}),
    "linear": (lambda: nn.Linear(8, 16), {}),
    "no bias": (lambda: nn.Conv2d(24, 16, 1, bias=False), {}),
}


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_its_simulation_to_one_float32_sum(product, passes, name, step):
    make, settings = LAYERS[name]
    layer = quant_layer(make(), **settings)
    integer, x = IntegerLayer(layer, product, passes), torch.randn(2, 24, 9, 8)
    with layer.context.reading(step), torch.no_grad():
        ours, simulated = integer(x), layer(x)
    scale = float(simulated.abs().max())
    if layer.layer.bias is not None:
        assert float((ours - exact(layer, x, step)).abs().max()) < 1e-6 * scale
    assert float((ours - simulated).abs().max()) < 1e-5 * scale


def test_the_corrections_of_cachequant_are_in_scale_and_bias(product):
    layer = quant_layer(nn.Conv2d(24, 16, 3, padding=1), split=10)
    layer.set_correction(1 + 0.1 * torch.randn(STEPS, 16), torch.randn(STEPS, 16))
    integer, x = IntegerLayer(layer, product, Passes()), torch.randn(2, 24, 9, 8)
    for step in (0, 1):
        with layer.context.reading(step), torch.no_grad():
            assert float((integer(x) - exact(layer, x, step)).abs().max()) < 1e-5
            torch.testing.assert_close(integer(x), layer(x), rtol=1e-5, atol=1e-5)


def test_weights_of_a_symmetric_grid_need_no_sum_of_the_input(product):
    inner = nn.Conv2d(24, 16, 3)
    assert all(offset is None for offset in IntegerLayer(quant_layer(inner, weight_symmetric=True), product, Passes()).offsets)
    assert all(offset is None for offset in IntegerLayer(quant_layer(inner, weight_bits=4), product, Passes()).offsets)
    assert any(offset is not None for offset in IntegerLayer(quant_layer(inner), product, Passes()).offsets)


def test_a_symmetric_grid_lies_around_zero():
    layer = quant_layer(nn.Conv2d(24, 16, 3), weight_symmetric=True)
    assert set(layer.weight_zero_point.flatten().tolist()) == {128.0}
    assert layer.weight_codes().amin() >= -128
    error = (layer.quantized_weight - layer.layer.weight).abs()
    assert bool((error.amax((1, 2, 3)) <= 0.6 * layer.weight_delta[0] + 0.03 * layer.layer.weight.abs().amax((1, 2, 3))).all())


def test_a_step_without_calibration_is_refused(product):
    layer = quant_layer(nn.Conv2d(24, 16, 1))
    with layer.context.reading(2), pytest.raises(ArtifactError, match="no calibration for sampling step 2"):
        IntegerLayer(layer, product, Passes())(torch.randn(2, 24, 9, 8))


def test_weight_and_bias_are_sealed(product):
    with pytest.raises(NoWeightError):
        _ = IntegerLayer(quant_layer(nn.Conv2d(24, 16, 1)), product, Passes()).weight
