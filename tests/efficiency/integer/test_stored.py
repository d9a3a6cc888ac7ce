"""The integers as tensors, and a network made of them alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from iec.efficiency.integer import integer_tensors, stored_network, use_integers
from iec.efficiency.quantization import QuantizedNetwork, weight_bytes
from iec.errors import ArtifactError
from iec.sampling.network import Step
from tests.efficiency.quantization.conftest import TIMESTEPS, images, make_quantized, unet  # noqa: F401  # fixtures

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
SETTINGS: list[dict] = [{}, {"weight_bits": 4}, {"weight_bits": 3}, {"weight_bits": 5}, {"weight_symmetric": True}]
PATH = Path("integers.safetensors")


def eps(quantized):
    with torch.no_grad():
        return QuantizedNetwork(quantized)(X, Step(1, TIMESTEPS[1])).eps


def from_tensors(unet, quantized, tensors):  # noqa: F811
    return stored_network(unet, quantized.config, len(TIMESTEPS), tensors, PATH, "int8_unfused", PATH.parent)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_network_of_stored_integers_equals_that_of_the_calibrated_one_bit_for_bit(make_quantized, unet, settings):  # noqa: F811
    quantized = make_quantized(scale_rule="max", **settings)
    stored = from_tensors(unet, quantized, integer_tensors(quantized))
    assert torch.equal(eps(stored), eps(use_integers(quantized)))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_stated_bytes_are_those_that_are_stored(make_quantized, unet, settings):  # noqa: F811
    """Of a file, the weights with their scales; and what stays float in the model: biases, norms."""
    quantized = make_quantized(scale_rule="max", **settings)
    tensors = integer_tensors(quantized)
    of_layers = sum(tensor.nbytes for name, tensor in tensors.items() if ".weight" in name)
    layers = [module for module in unet.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    floats = sum(p.nbytes for p in unet.parameters()) - sum(layer.weight.nbytes for layer in layers)
    stated = weight_bytes(quantized)
    stored = from_tensors(unet, quantized, tensors)
    assert weight_bytes(stored) == of_layers + floats
    assert weight_bytes(use_integers(quantized)) == weight_bytes(stored)
    if settings.get("weight_bits", 8) in (4, 8):  # in between there is room to spare
        assert stated == weight_bytes(stored)
    else:
        assert stated < weight_bytes(stored)


def test_4_bit_weights_take_half_a_byte_each(make_quantized):  # noqa: F811
    tensors = {bits: integer_tensors(make_quantized(scale_rule="max", weight_bits=bits)) for bits in (4, 8)}
    for name in ("mid_block.resnets.0.conv1.weight", "time_embedding.linear_1.weight"):
        assert 2 * tensors[4][name].nbytes == tensors[8][name].nbytes


def test_the_float_weights_of_layers_are_neither_read_nor_kept(make_quantized, unet):  # noqa: F811
    """They can be empty; the network keeps no parameter of their size, and none of the model's."""
    quantized = make_quantized(scale_rule="max")
    tensors, expected = integer_tensors(quantized), eps(use_integers(make_quantized(scale_rule="max")))
    layers = [module for module in unet.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    kept = [layer.weight for layer in layers]
    try:
        for layer in layers:
            layer.weight = nn.Parameter(torch.full_like(layer.weight, torch.nan), requires_grad=False)
        stored = from_tensors(unet, quantized, tensors)
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight = weight
    assert torch.equal(eps(stored), expected)
    assert {p.data_ptr() for p in stored.parameters()}.isdisjoint(p.data_ptr() for p in unet.parameters())
    assert sum(p.numel() for p in stored.parameters()) < 0.01 * sum(p.numel() for p in unet.parameters())


def test_the_corrections_of_cachequant_are_stored_too(make_quantized, unet):  # noqa: F811
    quantized, plain = make_quantized(scale_rule="max"), eps(use_integers(make_quantized(scale_rule="max")))
    layer = quantized.layers()["up_blocks.1.resnets.0.conv1"]
    shape = (len(TIMESTEPS), len(layer.layer.weight))
    layer.set_correction(torch.full(shape, 1.1), torch.full(shape, 0.2))
    stored = from_tensors(unet, quantized, integer_tensors(quantized))
    expected = eps(use_integers(quantized))
    assert torch.equal(eps(stored), expected)
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("conv_in.weight"), "conv_in.weight is missing"),
        (lambda t: t.update({"conv_in.weight": t["conv_in.weight"][:, :2]}), r"conv_in.weight is torch.uint8 \[32, 2, 3, 3\]"),
        (lambda t: t.update({"conv_in.weight_delta": t["conv_in.weight_delta"].double()}), "weight_delta is torch.float64"),
        (lambda t: t.pop("conv_in.input.delta"), "conv_in.input.delta is missing"),
    ],
)
def test_tensors_of_another_network_are_refused_by_name(make_quantized, unet, damage, message):  # noqa: F811
    quantized = make_quantized(scale_rule="max")
    tensors = integer_tensors(quantized)
    damage(tensors)
    with pytest.raises(ArtifactError, match=message):
        from_tensors(unet, quantized, tensors)
