"""What is quantized in a whole UNet, with which bits, and which step it reads."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from iec.efficiency.quantization import PTQConfig, QuantizedNetwork, describe, quantize_unet, weight_bytes
from iec.efficiency.quantization.model import skip_splits
from iec.errors import ArtifactError, ConfigError
from iec.models.unet import UNetNetwork
from iec.sampling.network import FeatureCache, Prediction, Step
from tests.efficiency.quantization.conftest import TIMESTEPS

NOTHING = PTQConfig(weight_bits=32, activation_bits=32, softmax_bits=32)


def grid_sizes(weight):
    """Distinct values of each output channel."""
    return [len(channel.unique()) for channel in weight.flatten(1)]


def test_every_layer_is_quantized_once(unet):
    quantized = quantize_unet(unet, PTQConfig(), 2)
    expected = {name for name, module in unet.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert quantized.layers().keys() == expected
    assert {"time_embedding.linear_1", "mid_block.resnets.0.time_emb_proj", "conv_in", "conv_out"} <= expected
    attentions = [name for name, module in unet.named_modules() if type(module).__name__ == "Attention"]
    operands = {f"{a}.{o}" for a in attentions for o in ("query", "key", "value", "softmax")}
    assert len(attentions) == 4 and operands <= quantized.quantizers().keys()


def test_w4a8_ends_keep_8_bits_and_the_time_embedding_does_not(unet):
    layers = quantize_unet(unet, PTQConfig(weight_bits=4), 1).layers()
    for name, layer in layers.items():
        bits = 8 if name in ("conv_in", "conv_out") else 4
        assert (layer.weight_bits, layer.activation_bits) == (bits, 8)
    parts = [layers[n].quantized_weight for n in ("time_embedding.linear_1", "time_embedding.linear_2")]
    assert all(max(grid_sizes(weight)) <= 16 for weight in parts)
    assert 16 < max(grid_sizes(layers["conv_out"].quantized_weight)) <= 256
    split = layers["up_blocks.0.resnets.0.conv1"]
    assert all(max(grid_sizes(split.quantized_weight[:, part])) <= 16 for part in split.parts)
    assert max(grid_sizes(split.quantized_weight)) > 16


def test_softmax_and_ends_have_their_own_bits(unet):
    config = PTQConfig(activation_bits=6, softmax_bits=10, end_bits=7)
    bits = {name: quantizer.bits for name, quantizer in quantize_unet(unet, config, 1).quantizers().items()}
    for name, value in bits.items():
        assert value == (7 if name.startswith("conv_") else 10 if name.endswith(".softmax") else 6)
    assert quantize_unet(unet, replace(config, activation_bits=32, softmax_bits=32), 1).quantizers() == {}


def test_nothing_quantized_is_the_float_network(unet, conditional_unet):
    """The attention of this package against diffusers', self and cross, 4-D and 3-D."""
    step, x = Step(0, 300), torch.randn(2, 3, 8, 8)
    off = QuantizedNetwork(quantize_unet(unet, NOTHING, 1))
    torch.testing.assert_close(off(x, step).eps, UNetNetwork(unet)(x, step).eps, rtol=1e-5, atol=1e-6)
    x, cond = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    off = QuantizedNetwork(quantize_unet(conditional_unet, NOTHING, 1))
    torch.testing.assert_close(off(x, step, cond).eps, UNetNetwork(conditional_unet)(x, step, cond).eps, rtol=1e-5, atol=1e-6)


def test_attention_mask_as_in_diffusers(conditional_unet):
    quantized = quantize_unet(conditional_unet, NOTHING, 1)
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
    arguments = (torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), torch.randn(2, 5, 24))
    with torch.no_grad(), quantized.context.reading(0):
        ours = quantized(*arguments, encoder_attention_mask=mask).sample
    with torch.no_grad():
        theirs = conditional_unet(*arguments, encoder_attention_mask=mask).sample
        unmasked = conditional_unet(*arguments).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (theirs - unmasked).abs().max() > 1e-4


def test_more_bits_come_closer_and_16_reproduce_the_float_network(unet, images, make_quantized):
    step, errors = Step(1, TIMESTEPS[1]), {}
    expected = UNetNetwork(unet)(images[1], step).eps
    for bits in (4, 8, 16):
        network = QuantizedNetwork(make_quantized(weight_bits=bits, activation_bits=bits, softmax_bits=bits, end_bits=bits))
        errors[bits] = float((network(images[1], step).eps - expected).norm() / expected.norm())
    assert errors[16] < 1e-3 < errors[8] < 0.1 < errors[4]


def test_splits_are_the_channels_of_h(unet, conditional_unet):
    """Checked against what the skip concatenation really gets, and against the widths by hand."""
    for net, x, cond in [
        (unet, torch.randn(1, 3, 8, 8), ()),
        (conditional_unet, torch.randn(1, 4, 8, 8), (torch.randn(1, 5, 24),)),
    ]:
        seen, cat = [], torch.cat

        def spy(tensors, dim=0, seen=seen, cat=cat):
            if dim == 1:
                seen.append(tensors[0].shape[1])
            return cat(tensors, dim=dim)

        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "cat", spy)
            net(x, 10, *cond)
        names = [f"up_blocks.{i}.resnets.{j}.conv1" for i, b in enumerate(net.up_blocks) for j in range(len(b.resnets))]
        splits = skip_splits(net)
        assert [splits[name] for name in names] == seen[-len(names) :] == [64, 64, 64, 32]
        assert len(splits) == 2 * len(names)


def test_up_blocks_of_another_build_are_refused(unet):
    other = copy.deepcopy(unet)
    other.up_blocks[0].resnets[0].conv1 = nn.Conv2d(64, 64, 3, padding=1)
    with pytest.raises(ConfigError, match="up_blocks.0.resnets.0 .*split_skips=false"):
        quantize_unet(other, PTQConfig(), 1)
    with pytest.raises(ConfigError, match="up_blocks.0.extra is a ConvTranspose2d"):
        other.up_blocks[0].extra = nn.ConvTranspose2d(2, 2, 2)
        quantize_unet(other, PTQConfig(split_skips=False), 1)


def test_attention_of_another_kind_is_refused(unet):
    other = copy.deepcopy(unet)
    other.mid_block.attentions[0].norm_q = nn.LayerNorm(16)
    with pytest.raises(ConfigError, match=r"mid_block\.attentions\.0 .*norm_q"):
        quantize_unet(other, PTQConfig(), 1)


def test_a_layer_with_two_names_is_quantized_once(unet):
    other = copy.deepcopy(unet)
    other.conv_again = other.conv_in
    quantized = quantize_unet(other, PTQConfig(), 1)
    assert quantized.unet.conv_again is quantized.unet.conv_in
    assert "conv_in" in quantized.layers() and "conv_again" not in quantized.layers()


def test_rows_are_read_at_the_index_of_the_step(images, make_quantized):
    quantized = make_quantized()
    network, x = QuantizedNetwork(quantized), images[0]
    before = [network(x, Step(i, 500)).eps for i in range(3)]
    quantizer = quantized.quantizers()["conv_out.input"]
    delta = quantizer.delta.clone()
    delta[1] *= 2
    quantizer.set_steps(delta, quantizer.zero_point.clone(), quantizer.calibrated.clone())
    after = [network(x, Step(i, 500)).eps for i in range(3)]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_calls_leave_nothing_behind(images, make_quantized):
    quantized = make_quantized()
    network = QuantizedNetwork(quantized)
    first = network(images[0], Step(2, 100)).eps
    network(images[1], Step(0, 900, correction=1))
    assert torch.equal(network(images[0], Step(2, 100)).eps, first)


def test_no_row_outside_a_call(images, make_quantized):
    quantized = make_quantized()
    QuantizedNetwork(quantized)(images[0], Step(0, 900))
    with pytest.raises(ArtifactError, match=r"\.input was called without a sampling step.*QuantizedNetwork"):
        quantized.unet(images[0], 900)

    def failing(x, step, cond=None, cache=None):
        raise KeyError("inside")

    with pytest.raises(KeyError):
        QuantizedNetwork(quantized, failing)(images[0], Step(0, 900))
    with pytest.raises(ArtifactError, match="without a sampling step"):
        quantized.context.step("the test")


@pytest.mark.parametrize("index", [3, -1])
def test_steps_outside_the_table_are_refused(images, make_quantized, index):
    with pytest.raises(ArtifactError, match=rf"step {index} .*0 \.\. 2"):
        QuantizedNetwork(make_quantized())(images[0], Step(index, 900))


def test_another_way_to_evaluate_the_unet(images, make_quantized):
    """A network on the quantized UNet gets all arguments, inside the step."""
    quantized = make_quantized()
    got = []

    def network(x, step, cond=None, cache=None):
        got.append((quantized.context.step("the test"), step, cond, cache))
        return Prediction(x)

    x, step, cond = images[0], Step(1, 500, "cached"), torch.zeros(4)
    cache = FeatureCache(torch.zeros(4), Step(0, 900))
    assert QuantizedNetwork(quantized, network)(x, step, cond, cache).eps is x
    assert got == [(1, step, cond, cache)]


def test_weight_bytes_by_hand(unet):
    linear = sum(p.numel() for p in unet.parameters()) * 4
    assert weight_bytes(quantize_unet(unet, NOTHING, 1)) == linear
    layers = [(n, m) for n, m in unet.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    splits = skip_splits(unet)
    expected = linear
    for name, layer in layers:
        bits = 8 if name in ("conv_in", "conv_out") else 4
        expected += -4 * layer.weight.numel() + layer.weight.numel() * bits // 8
        expected += 8 * len(layer.weight) * (2 if name in splits else 1)
    assert weight_bytes(quantize_unet(unet, PTQConfig(weight_bits=4), 1)) == expected


def test_describe(make_quantized, unet):
    assert describe(make_quantized()).startswith("W8A8 (softmax 8, ends 8 bits, mse): ")
    assert "3 of 3 steps fully calibrated" in describe(make_quantized())
    assert "8 split; 0 of 2 steps" in describe(quantize_unet(unet, PTQConfig(weight_bits=4), 2))
    assert "mse, rounding learned by block): " in describe(quantize_unet(unet, PTQConfig(reconstruct="block"), 2))
    assert "0 split" in describe(quantize_unet(unet, PTQConfig(split_skips=False), 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 1}, r"weight_bits=1 .*2 \.\. 16, or 32"),
        ({"activation_bits": 17}, r"activation_bits=17 .*2 \.\. 16"),
        ({"softmax_bits": 8.0}, "softmax_bits=8.0"),
        ({"end_bits": True}, "end_bits=True"),
        ({"scale_rule": "median"}, "choose mse, max, percentile"),
        ({"percentile": 0.4}, r"percentile=0.4 must be above 0\.5"),
        ({"percentile": float("nan")}, "percentile=nan"),
        ({"activation_granularity": "row"}, "choose tensor, channel"),
        ({"reconstruct": "unit"}, "choose none, layer, block"),
        ({"reconstruct": "layer", "weight_bits": 32}, "weight_bits=32 rounds none.*reconstruct=none"),
        ({"calibration_images": 0}, "calibration_images=0"),
        ({"calibration_batch": -1}, "calibration_batch=-1"),
        ({"search_samples": 0}, "search_samples=0 .*null"),
    ],
)
def test_settings_that_cannot_be_run(settings, message):
    with pytest.raises(ConfigError, match=message):
        PTQConfig(**settings)


def test_no_steps_is_refused(unet):
    with pytest.raises(ConfigError, match="at least one sampling step"):
        quantize_unet(unet, PTQConfig(), 0)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_rows_are_where_the_weights_are(unet, granularity):
    """On the meta device, as the one that is not the CPU."""
    quantized = quantize_unet(copy.deepcopy(unet).to("meta"), PTQConfig(activation_granularity=granularity), 2)
    assert {buffer.device.type for buffer in quantized.buffers()} == {"meta"}
