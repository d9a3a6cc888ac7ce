import copy
from functools import partial

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedNetwork, calibrate_step, quantize_unet
from iec.efficiency.quantization.quantizer import search_scale
from iec.errors import ArtifactError, ConfigError
from iec.models.unet import UNetNetwork
from iec.sampling.network import FeatureCache, Prediction, Step
from tests.efficiency.quantization.conftest import TIMESTEPS, calibrate_full


def test_calibration_is_deterministic_and_leaves_the_unet_alone(unet, images, make_quantized):
    unet = copy.deepcopy(unet).requires_grad_(True)  # the fixture's may have been frozen by a `UNetNetwork` of another test
    before = copy.deepcopy(unet.state_dict())
    one, other = make_quantized(), quantize_unet(unet, PTQConfig(calibration_images=4), 3)
    calibrate_full(other, images)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert unet.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert isinstance(unet.mid_block.attentions[0].processor, AttnProcessor2_0)
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_rows_belong_to_their_steps(images, make_quantized):
    """Recalibrating step 1 on other images changes row 1 of everything that images reach, and no other row."""
    quantized = make_quantized()
    before = {name: q.delta.clone() for name, q in quantized.quantizers().items()}
    calibrate_step(quantized, UNetNetwork(quantized.unet), CalibrationCall(images[1] * 3, Step(1, TIMESTEPS[1])))
    changed = {name: (q.delta != before[name]).tolist() for name, q in quantized.quantizers().items()}
    assert all(rows[0] == rows[2] == False for rows in changed.values())  # noqa: E712
    assert changed["conv_in.input"][1] and changed["conv_out.input"][1]
    assert all(q.calibrated.all() for q in quantized.quantizers().values())
    assert len({tuple(q.delta.tolist()) for q in quantized.quantizers().values()}) > 1


def test_calibrating_again_starts_anew(images, make_quantized):
    """A row is not averaged with what an earlier calibration left there."""
    quantized, expected = make_quantized(), make_quantized().state_dict()
    for x in (images[2] * 3, images[1]):
        calibrate_step(quantized, UNetNetwork(quantized.unet), CalibrationCall(x, Step(1, TIMESTEPS[1])))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in quantized.state_dict().items())


def test_rows_differ_between_steps_and_do_not_depend_on_other_rows(unet, images, make_quantized):
    quantized = make_quantized()
    delta = quantized.quantizers()["time_embedding.linear_1.input"].delta
    assert len(delta.unique()) == 3
    alone = quantize_unet(unet, PTQConfig(calibration_images=4), 3)
    calibrate_step(alone, UNetNetwork(alone.unet), CalibrationCall(images[2], Step(2, TIMESTEPS[2])))
    for name, quantizer in alone.quantizers().items():
        assert quantizer.calibrated.tolist() == [False, False, True]
        assert quantizer.delta[2] == quantized.quantizers()[name].delta[2]


def test_uncalibrated_steps_and_layers_raise(unet, images):
    quantized = quantize_unet(unet, PTQConfig(calibration_images=4), 3)
    network = QuantizedNetwork(quantized)
    with pytest.raises(ArtifactError, match=r"no calibration for sampling step 0"):
        network(images[0], Step(0, 900))

    def shallow(x, step, cond=None, cache=None):  # like a cached call: only some layers run
        return Prediction(quantized.unet.conv_in(x.float()))

    calibrate_step(quantized, UNetNetwork(quantized.unet), CalibrationCall(images[0], Step(0, 900)))
    feature = FeatureCache(torch.zeros(4), Step(0, 900))
    calibrate_step(quantized, shallow, CalibrationCall(images[1], Step(1, 500, "cached"), cache=feature))
    network(images[0], Step(0, 900))
    QuantizedNetwork(quantized, shallow)(images[1], Step(1, 500, "cached"))
    with pytest.raises(ArtifactError, match=r"time_embedding\.linear_1\.input has no calibration for sampling step 1"):
        network(images[1], Step(1, 500))


def test_each_layer_is_calibrated_on_what_quantized_layers_give_it(unet, images):
    """With 2-bit activations the second layer's input differs a lot from the float network's."""
    found = {}
    for bits in (2, 16):
        quantized = quantize_unet(unet, PTQConfig(activation_bits=bits, end_bits=bits, calibration_images=4), 1)
        calibrate_full(quantized, images[:1], TIMESTEPS[:1])
        quantizer = quantized.quantizers()["time_embedding.linear_2.input"]
        found[bits] = float(quantizer.delta[0]) * (2**bits - 1)
    assert abs(found[2] / found[16] - 1) > 0.01


def test_the_batch_of_the_config_is_what_counts(unet, images):
    """One batch of all images by default; smaller ones are averaged, first layer checked by hand."""
    x = images[:1] * torch.tensor([1.0, 1.0, 4.0, 4.0]).view(1, 4, 1, 1, 1)
    make = partial(PTQConfig, calibration_images=4)
    rows = {}
    for batch in (2, 4, 32):
        quantized = quantize_unet(unet, make(calibration_batch=batch), 1)
        calibrate_full(quantized, x, TIMESTEPS[:1])
        rows[batch] = quantized.quantizers()["conv_in.input"].delta[0]
    assert rows[4] == rows[32] == search_scale(x, 8)[0]
    parts = [search_scale(part, 8)[0] for part in x[0].split(2)]
    assert rows[2] == 0.9 * parts[0] + (1 - 0.9) * parts[1]


def test_conditioning_and_cache_are_split_like_the_images(unet):
    quantized = quantize_unet(unet, PTQConfig(calibration_batch=3), 1)
    got = []

    def network(x, step, cond=None, cache=None):
        got.append((x[:, 0].tolist(), cond.tolist(), cache.feature.tolist(), step))
        return Prediction(x)

    numbers = torch.arange(5.0)
    cache = FeatureCache(numbers + 20, Step(0, 7))
    step = Step(0, 7, "cached")
    calibrate_step(quantized, network, CalibrationCall(numbers[:, None], step, numbers + 10, cache))
    assert got == [
        ([0, 1, 2], [10, 11, 12], [20, 21, 22], step),
        ([3, 4], [13, 14], [23, 24], step),
    ]


def test_conditional_unet_end_to_end(conditional_unet):
    quantized = quantize_unet(conditional_unet, PTQConfig(calibration_images=3), 2)
    x, cond = torch.randn(2, 3, 4, 8, 8), torch.randn(3, 5, 24)
    done = []
    calibrate_full(quantized, x, (800, 200), cond, progress=lambda *count: done.append(count))
    assert done == [(1, 2), (2, 2)]
    names = quantized.quantizers()
    assert {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.softmax", "conv_out.input"} <= names.keys()
    step = Step(1, 200)
    exact, ours = UNetNetwork(conditional_unet)(x[1], step, cond).eps, QuantizedNetwork(quantized)(x[1], step, cond).eps
    assert 1e-4 < float((ours - exact).norm() / exact.norm()) < 0.05
    assert not torch.equal(ours, QuantizedNetwork(quantized)(x[1], step, cond.flip(0)).eps)


@pytest.mark.parametrize(
    ("inputs", "timesteps", "message"),
    [
        (torch.zeros(2, 4, 3, 8, 8), (900, 500), "3 sampling steps.*2 calls"),
        (torch.zeros(3, 5, 3, 8, 8), TIMESTEPS, "5 calibration images.*calibration_images=4"),
    ],
)
def test_calibration_sets_that_do_not_fit(unet, inputs, timesteps, message):
    with pytest.raises(ConfigError, match=message):
        calibrate_full(quantize_unet(unet, PTQConfig(calibration_images=4), 3), inputs, timesteps)


def test_calibration_calls_that_cannot_be():
    x, step = torch.zeros(4, 3, 8, 8), Step(0, 9)
    with pytest.raises(ConfigError, match="3 conditionings for 4"):
        CalibrationCall(x, step, torch.zeros(3))
    with pytest.raises(ConfigError, match="cached feature"):
        CalibrationCall(x, Step(0, 9, "cached"))
    with pytest.raises(ConfigError, match="cached feature"):
        CalibrationCall(x, step, cache=FeatureCache(x, step))
