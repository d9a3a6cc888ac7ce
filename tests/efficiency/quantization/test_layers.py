import pytest
import torch
from torch import nn
from torch.nn import functional as F

from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.layers import QuantLayer
from iec.efficiency.quantization.quantizer import search_scale
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.errors import ArtifactError, ConfigError, NonFiniteError
from tests.efficiency.quantization.grid import fake_quantize

LAYERS = {
    "conv": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 8, 8)),
    "circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular", bias=False), (2, 6, 8, 8)),
    "linear": (lambda: nn.Linear(6, 4), (2, 5, 6)),
}


def calibrated(layer, x, split=None, **settings):
    context = StepContext(1)
    quantized = QuantLayer(layer.requires_grad_(False), "layer", PTQConfig(**settings), context, split)
    with context.calibrating(0):
        quantized(x)
    return quantized


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_on_fake_quantized_operands(kind):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    quantized = calibrated(layer, x, weight_bits=4)
    delta, zero_point = search_scale(layer.weight, 4, per_channel=True)
    view = (-1,) + (1,) * (layer.weight.ndim - 1)
    weight = fake_quantize(layer.weight, delta.view(view), zero_point.view(view), 4)
    xq = fake_quantize(x, *search_scale(x, 8), 8)
    layer.weight.data = weight
    with quantized.context.reading(0):
        assert torch.equal(quantized(x), layer(xq))


def test_calibration_uses_the_float_weight():
    layer, x = nn.Conv2d(6, 4, 3), torch.randn(2, 6, 8, 8)
    context = StepContext(1)
    quantized = QuantLayer(layer.requires_grad_(False), "layer", PTQConfig(weight_bits=2), context)
    with context.calibrating(0):
        y = quantized(x)
    assert torch.equal(y, layer(fake_quantize(x, *search_scale(x, 8), 8)))
    with context.reading(0):
        assert (quantized(x) - y).abs().max() > 1e-2


def test_equal_parameters_make_the_split_layer_the_unsplit_one():
    layer, x = nn.Conv2d(6, 4, 3, padding=1), torch.randn(2, 6, 8, 8)
    whole, split = calibrated(layer, x, weight_bits=4), calibrated(layer, x, split=2, weight_bits=4)
    with whole.context.reading(0):
        expected = whole(x)
    with split.context.reading(0):
        assert not torch.equal(split(x), expected)
        split.set_weight_scales(whole.weight_delta.expand(2, -1), whole.weight_zero_point.expand(2, -1))
        for quantizer in split.inputs:
            quantizer.set_steps(whole.inputs[0].delta, whole.inputs[0].zero_point, whole.inputs[0].calibrated)
        assert torch.equal(split(x), expected)


def test_the_split_layer_is_the_sum_over_both_halves():
    layer, x = nn.Conv2d(6, 4, 3, padding=1), torch.randn(2, 6, 8, 8)
    x[:, :2] *= 50  # halves of different range: what the split is for
    split = calibrated(layer, x, split=2)
    assert split.inputs[0].delta[0] > 10 * split.inputs[1].delta[0]
    halves = []
    for part, quantizer in zip((slice(0, 2), slice(2, 6)), split.inputs, strict=True):
        delta, zero_point = search_scale(layer.weight[:, part], 8, per_channel=True)
        weight = fake_quantize(layer.weight[:, part], delta.view(-1, 1, 1, 1), zero_point.view(-1, 1, 1, 1), 8)
        assert torch.equal(split.quantized_weight[:, part], weight)
        halves.append(F.conv2d(fake_quantize(x[:, part], quantizer.delta[0], quantizer.zero_point[0], 8), weight, padding=1))
    with split.context.reading(0):
        torch.testing.assert_close(split(x), halves[0] + halves[1] + layer.bias.view(1, -1, 1, 1), rtol=1e-4, atol=1e-4)


def test_the_input_is_left_as_it_is():
    x = torch.randn(2, 6, 8, 8)
    before = x.clone()
    for split in (None, 2):
        layer = calibrated(nn.Conv2d(6, 4, 3), x, split=split)
        with layer.context.reading(0):
            layer(x)
    assert torch.equal(x, before)


def test_loading_a_state_dict_renews_what_is_derived_from_it():
    x = torch.randn(2, 6, 8, 8)
    one, other = (calibrated(nn.Conv2d(6, 4, 3), torch.randn(2, 6, 8, 8) * s, weight_bits=4) for s in (1, 3))
    other.load_state_dict(one.state_dict())
    with one.context.reading(0), other.context.reading(0):
        assert torch.equal(one(x), other(x))


def test_batches_are_averaged_and_the_first_one_sets():
    context = StepContext(2)
    quantizer = ActivationQuantizer("q", 8, PTQConfig(), context)
    batches = [torch.randn(1000) * scale for scale in (1.0, 3.0, 0.5)]
    expected = None
    for x in batches:
        with context.calibrating(1):
            y = quantizer(x)
        new = torch.stack(search_scale(x, 8))
        expected = new if expected is None else 0.9 * expected + 0.1 * new
        torch.testing.assert_close(torch.stack([quantizer.delta[1], quantizer.zero_point[1]]), expected)
        assert torch.equal(y, fake_quantize(x, quantizer.delta[1], quantizer.zero_point[1], 8))
    assert float(quantizer.zero_point[1]) % 1 != 0
    assert quantizer.calibrated.tolist() == [False, True]
    quantizer.clear_step(1)
    with context.calibrating(1):
        quantizer(batches[2])
    assert quantizer.delta[1] == search_scale(batches[2], 8)[0]


def test_an_uncalibrated_row_cannot_be_read():
    context = StepContext(3)
    quantizer = ActivationQuantizer("down.conv.input", 8, PTQConfig(), context)
    with context.calibrating(1):
        quantizer(torch.randn(10))
    with context.reading(1):
        quantizer(torch.randn(10))
    with (
        pytest.raises(ArtifactError, match=r"down\.conv\.input has no calibration for sampling step 2.*Calibrate"),
        context.reading(2),
    ):
        quantizer(torch.randn(10))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_calibration_input_that_is_not_finite_is_refused(value):
    context = StepContext(1)
    quantizer = ActivationQuantizer("conv.input", 8, PTQConfig(), context)
    x = torch.randn(200000)
    x[3] = value
    with pytest.raises(NonFiniteError, match=r"conv\.input is not finite at sampling step 0"), context.calibrating(0):
        quantizer(x)
    assert not quantizer.calibrated.any()


def test_half_precision_inputs_are_quantized_in_float32():
    context = StepContext(1)
    quantizer = ActivationQuantizer("q", 12, PTQConfig(), context)
    x = torch.randn(1000).bfloat16()
    with context.calibrating(0):
        y = quantizer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, fake_quantize(x.float(), quantizer.delta[0], quantizer.zero_point[0], 12).bfloat16())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_correction_scales_and_shifts_the_output_of_the_first_half(kind):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    quantized = calibrated(layer, x, split=2, weight_bits=4)
    with quantized.context.reading(0):
        plain = quantized(x)
        quantized.set_correction(torch.ones(1, 4), torch.zeros(1, 4))
        assert torch.equal(quantized(x), plain)
        quantized.set_correction(torch.full((1, 4), 2.0), torch.arange(4.0)[None])
        xq = quantized._quantize_input(x)
        half = torch.zeros_like(xq)
        channels = (slice(None), slice(0, 2)) if kind != "linear" else (..., slice(0, 2))
        half[channels] = xq[channels]
        first = _apply(layer, half, quantized.quantized_weight)
        shift = torch.arange(4.0) if kind == "linear" else torch.arange(4.0).view(1, 4, 1, 1)
        torch.testing.assert_close(quantized(x), plain + first + shift)
    with quantized.context.calibrating(0):
        assert torch.equal(quantized(x), layer(quantized._quantize_input(x)))  # scales are found without it


def _apply(layer, x, weight):
    return F.linear(x, weight) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, None)


def test_a_correction_that_does_not_fit():
    layer, x = nn.Conv2d(6, 4, 3), torch.randn(2, 6, 8, 8)
    with pytest.raises(ConfigError, match="split_skips"):
        calibrated(layer, x).set_correction(torch.ones(1, 4), torch.zeros(1, 4))
    with pytest.raises(ConfigError, match=r"\[1, 4\]"):
        calibrated(layer, x, split=2).set_correction(torch.ones(2, 4), torch.zeros(2, 4))
