"""The percentile rule, and one activation scale a channel."""

import pytest
import torch
from torch import nn

from iec.efficiency.quantization import PTQConfig, QuantizedNetwork, load_calibration, quantize_unet, save_calibration
from iec.efficiency.quantization.layers import QuantLayer
from iec.efficiency.quantization.quantizer import StraightThrough, search_scale
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.sampling.network import Step
from tests.efficiency.quantization.conftest import TIMESTEPS, calibrate_full
from tests.efficiency.quantization.grid import fake_quantize

CHANNEL = PTQConfig(activation_granularity="channel")


@pytest.mark.parametrize("percentile", [0.9, 0.999, 1.0])
def test_the_percentile_rule_by_sorting(percentile):
    x = torch.randn(3, 5000) ** 3
    delta, zero_point = search_scale(x, 8, "percentile", per_channel=True, percentile=percentile)
    for row, d, z in zip(x, delta, zero_point, strict=True):
        cut = int((1 - percentile) * 4999)
        low, high = row.sort().values[[cut, 4999 - cut]].double()
        assert float(d) == pytest.approx(float(high - low) / 255) and z == (-low / ((high - low) / 255)).round()
    whole = search_scale(x[0], 8, "percentile", percentile=percentile)
    assert (delta[0], zero_point[0]) == whole


def test_a_percentile_clips_the_tails_and_nothing_else():
    x = torch.cat([torch.linspace(-1, 1, 9998), torch.tensor([-50.0, 70.0])])
    xq = fake_quantize(x, *search_scale(x, 8, "percentile", percentile=0.999), 8)
    assert (xq[:-2] - x[:-2]).abs().max() < 0.012 and xq[-2:].abs().max() < 1.01


def test_percentiles_that_coincide_fall_back_on_the_extremes():
    x = torch.zeros(10000)
    x[0], x[1] = -1, 3  # nearly all values are equal, and the others are not to vanish
    delta, zero_point = search_scale(x, 8, "percentile", percentile=0.99)
    assert float(delta) == pytest.approx(4 / 255)
    assert fake_quantize(x, delta, zero_point, 8)[:2].tolist() == pytest.approx([-1, 3], abs=0.02)


def test_more_values_than_quantile_takes():
    x = torch.linspace(0, 1, (1 << 24) + 7)
    delta, _ = search_scale(x, 8, "percentile", percentile=0.75)
    assert float(delta) == pytest.approx(0.5 / 255, rel=1e-4)


@pytest.mark.parametrize("rule", ["mse", "max", "percentile"])
@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (4, 7, 6), (9, 6)])
def test_every_channel_is_quantized_as_if_alone(rule, shape):
    x = torch.randn(shape) * torch.logspace(-2, 1, 6).view((6, 1, 1) if len(shape) == 4 else (6,))
    config = PTQConfig(scale_rule=rule, activation_granularity="channel", percentile=0.95)
    context = StepContext(2)
    quantizer = ActivationQuantizer("q", 6, config, context, channels=6)
    with context.calibrating(1):
        found = quantizer(x)
    dimension = 1 if len(shape) == 4 else -1
    for c in range(6):
        part = x.select(dimension, c)
        expected = fake_quantize(part, *search_scale(part, 6, rule, percentile=0.95), 6)
        assert torch.equal(found.select(dimension, c), expected)
    with context.reading(1):
        assert torch.equal(quantizer(x), found)
    assert quantizer.delta.shape == (2, 6) and quantizer.calibrated.tolist() == [False, True]


def test_channels_are_averaged_over_batches():
    context, batches = StepContext(1), torch.randn(2, 4, 3, 5, 5)
    quantizer = ActivationQuantizer("q", 8, CHANNEL, context, channels=3)
    with context.calibrating(0):
        quantizer(batches[0])
        quantizer(batches[1])
    (first, z_first), (second, z_second) = (search_scale(b.transpose(0, 1), 8, per_channel=True) for b in batches)
    torch.testing.assert_close(quantizer.delta[0], 0.9 * first + 0.1 * second)
    torch.testing.assert_close(quantizer.zero_point[0], 0.9 * z_first + 0.1 * z_second)


def test_channels_help_where_channels_differ():
    x, layer = torch.randn(2, 4, 8, 8) * torch.tensor([0.01, 0.1, 1, 10]).view(4, 1, 1), nn.Conv2d(4, 4, 3).requires_grad_(False)
    layer.weight.div_(x.std((0, 2, 3)).view(4, 1, 1))  # all channels matter alike
    errors = []
    for granularity in ("tensor", "channel"):
        config, context = PTQConfig(32, 8, activation_granularity=granularity), StepContext(1)
        quantized = QuantLayer(layer, "layer", config, context)
        with context.calibrating(0):
            errors.append(float((quantized(x) - layer(x)).square().mean()))
    assert errors[1] < 0.01 * errors[0]


def test_a_network_with_channels_round_trips(unet, images, tmp_path):
    def fresh():
        return quantize_unet(unet, PTQConfig(scale_rule="max", calibration_images=4, activation_granularity="channel"), 3)

    quantized, loaded = fresh(), fresh()
    calibrate_full(quantized, images)
    rows = {name: tuple(quantizer.delta.shape) for name, quantizer in quantized.quantizers().items()}
    assert rows["conv_in.input"] == (3, 3) and rows["time_embedding.linear_2.input"] == (3, 128)
    assert rows["up_blocks.0.resnets.0.conv1.input[h]"] == (3, 64)
    assert rows["mid_block.attentions.0.query"] == rows["mid_block.attentions.0.softmax"] == (3,)
    save_calibration(tmp_path / "a", quantized, {})
    load_calibration(tmp_path / "a", loaded, {})
    for i, x in enumerate(images):
        step = Step(i, TIMESTEPS[i])
        assert torch.equal(QuantizedNetwork(loaded)(x, step).eps, QuantizedNetwork(quantized)(x, step).eps)


@pytest.mark.parametrize("channels", [None, 3])
def test_a_row_an_image_is_what_each_image_gets_at_its_row(channels):
    context, x = StepContext(3), torch.randn(4, 3, 5, 5)
    quantizer = ActivationQuantizer("q", 4, PTQConfig(), context, channels)
    for row in range(3):
        with context.calibrating(row):
            quantizer(x * (row + 1))
    rows = torch.tensor([2, 0, 1, 1])
    with context.reading_steps(rows):
        together = quantizer(x)
    for image, row, xq in zip(x, rows.tolist(), together, strict=True):
        with context.reading(row):
            assert torch.equal(quantizer(image[None])[0], xq)


def test_heads_of_an_image_share_its_row():
    context, x = StepContext(2), torch.randn(2, 7, 3)
    quantizer = ActivationQuantizer("q", 4, PTQConfig(), context)
    for row in range(2):
        with context.calibrating(row):
            quantizer(x * (row + 1))
    with context.reading_steps(torch.tensor([1, 0])):
        folded = quantizer(x.repeat_interleave(2, 0))
        assert torch.equal(folded, quantizer(x).repeat_interleave(2, 0))


def test_gradients_of_learned_steps_by_hand():
    """Inside, the slope in delta is the rounding residual in steps; outside, the bound of the grid."""
    x = torch.tensor([[0.3, -4.0, 9.0, 1.4]], dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    low, high = torch.tensor(-3.0), torch.tensor(12.0)
    xq = StraightThrough.apply(x, delta, low, high)
    assert torch.equal(xq, fake_quantize(x, delta, torch.tensor(3.0), 4))
    xq.backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64))
    assert x.grad.tolist() == [[1, 0, 0, 1000]]
    assert float(delta.grad) == pytest.approx(1 * (1 - 0.6) + 10 * -3 + 100 * 12 + 1000 * (3 - 2.8))
