import gc
from functools import partial

import pytest
import torch
from torch import nn

from iec.efficiency.integer import IntegerLayer, count_crossings, use_integers
from iec.efficiency.integer.passes import Passes
from iec.efficiency.quantization import QuantizedNetwork
from iec.errors import ConfigError
from iec.models.unet import UNetNetwork
from iec.sampling.network import Step
from tests.efficiency.quantization.conftest import TIMESTEPS, images, make_quantized, unet  # noqa: F401  # fixtures

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
SETTINGS: list[dict] = [{}, {"weight_bits": 4}, {"weight_symmetric": True}, {"split_skips": False}]


@pytest.fixture
def calibrated(make_quantized):  # noqa: F811
    """With scales that are quickly found."""
    return partial(make_quantized, scale_rule="max")


def eps(quantized, step):
    with torch.no_grad():
        return QuantizedNetwork(quantized)(X, Step(step, TIMESTEPS[step])).eps


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_layer_of_a_network_equals_its_simulation_on_the_same_input(calibrated, product, settings):
    simulated, integer = calibrated(**settings), use_integers(calibrated(**settings), product)
    layers = {module.name: module for module in integer.modules() if isinstance(module, IntegerLayer)}
    assert layers.keys() == simulated.layers().keys()

    def compare(layer, args, y):
        with integer.context.reading(1):
            assert float((layers[layer.name](*args) - y).abs().max() / y.abs().max()) < 5e-6, layer.name

    for layer in simulated.layers().values():
        layer.register_forward_hook(compare)
    eps(simulated, 1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_network_is_closer_to_its_simulation_than_that_is_to_float(calibrated, product, passes, settings, unet):  # noqa: F811
    """Where a value crosses a rounding border, all that follow are others; so are they if the simulation runs in another order."""
    simulated, integer = calibrated(**settings), use_integers(calibrated(**settings), product, passes)
    for step, t in enumerate(TIMESTEPS):
        expected = eps(simulated, step)
        with torch.no_grad():
            unquantized = UNetNetwork(unet)(X, Step(step, t)).eps
        assert (eps(integer, step) - expected).norm() < 0.5 * (expected - unquantized).norm()
    assert not torch.equal(eps(integer, 0), eps(integer, 1))


def test_integers_do_not_depend_on_the_order_of_weights_in_memory(calibrated, product, passes):
    plain, reordered = calibrated(), calibrated()
    reordered.unet.to(memory_format=torch.channels_last)
    assert torch.equal(*(eps(use_integers(quantized, product, passes), 1) for quantized in (plain, reordered)))


@pytest.mark.parametrize("settings", [{}, {"weight_bits": 4}], ids=str)
def test_networks_differ_by_values_on_a_rounding_border_alone(calibrated, passes, settings):
    """With the codes of the simulation they agree to float sums; a handful of values sits on a border, and many lie behind them."""
    simulated, integer = calibrated(**settings), use_integers(calibrated(**settings), passes=passes)
    expected, sizes = eps(integer, 1), quantized_values(simulated)
    found = count_crossings(simulated, integer, X, Step(1, TIMESTEPS[1]))
    assert found.values == sizes > 100_000
    assert found.error < 2e-6
    assert found.on_border < 1e-4 * found.values
    assert found.on_border <= found.crossed < 0.3 * found.values
    assert torch.equal(eps(integer, 1), expected)  # nothing is left behind


def quantized_values(simulated):
    """Of a call on X."""
    sizes = []
    quantizers = simulated.quantizers().values()
    handles = [quantizer.register_forward_hook(lambda *args: sizes.append(args[2].numel())) for quantizer in quantizers]
    eps(simulated, 1)
    for handle in handles:
        handle.remove()
    return sum(sizes)


def test_a_value_that_is_moved_over_a_border_is_counted_and_so_are_those_behind_it(calibrated):
    """The first code of the network is changed by 1."""

    class Moved(Passes):
        def codes(self, x, grid):
            codes = super().codes(x, grid)
            codes.q[0, 0, 0, 0] ^= 1
            return codes

    simulated, integer = calibrated(), use_integers(calibrated())
    before = count_crossings(simulated, integer, X, Step(1, TIMESTEPS[1]))
    integer.unet.conv_in.passes = Moved()
    after = count_crossings(simulated, integer, X, Step(1, TIMESTEPS[1]))
    assert (after.on_border, after.error) == (before.on_border + 1, before.error)
    assert after.crossed > before.crossed + 1


def test_no_float_weight_is_left(calibrated):
    quantized = calibrated()
    weights = {layer.layer.weight.shape for layer in quantized.layers().values()}
    use_integers(quantized)
    assert not any(isinstance(module, nn.Conv2d | nn.Linear) for module in quantized.modules())
    layers = [module for module in quantized.modules() if isinstance(module, IntegerLayer)]
    assert len(layers) > 20
    for layer in layers:
        tensors = [thing for thing in gc.get_referents(*gc.get_referents(layer.__dict__)) if isinstance(thing, torch.Tensor)]
        assert not [t for t in tensors if t.is_floating_point() and t.shape in weights]


@pytest.mark.parametrize(
    "overrides",
    [
        "efficiency.weight_bits=16",
        "efficiency.activation_bits=32",
        "efficiency.end_bits=32",
        "efficiency.activation_granularity=channel",
        "efficiency.kernels=int4",
    ],
)
@pytest.mark.parametrize("efficiency", ["w8a8", "cachequant_w8a8"])
def test_what_has_no_integer_form_is_refused_with_ways_out_that_work(make_cell, efficiency, overrides):
    kernels = [] if "kernels" in overrides else ["efficiency.kernels=int8"]
    with pytest.raises(ConfigError, match="choose simulated, int8" if not kernels else "kernels=simulated") as refused:
        make_cell(f"efficiency={efficiency}", *kernels, overrides)
    make_cell(f"efficiency={efficiency}", "efficiency.kernels=simulated", *([overrides] if kernels else []))
    if kernels:
        key = overrides.split("=")[0]
        value = {"efficiency.activation_granularity": "tensor"}.get(key, 8)
        assert f"{key}={value}" in str(refused.value)
        make_cell(f"efficiency={efficiency}", *kernels, f"{key}={value}")


def test_integers_are_another_cell_with_a_name_of_its_own(make_cell):
    for efficiency in ("w8a8", "cachequant_w4a8"):
        simulated, integer = make_cell(f"efficiency={efficiency}"), make_cell(f"efficiency={efficiency}", "efficiency.kernels=int8")
        assert integer.identity["efficiency"] == {**simulated.identity["efficiency"], "kernels": "int8"}
        assert f"-{efficiency}-int8-none-" in integer.slug
        assert (simulated.technique.arithmetic, integer.technique.arithmetic) == ("sim.", "int8")


def test_a_network_in_bfloat16_computes_its_layers_on_the_same_integers(calibrated, product):
    quantized = calibrated()
    expected = eps(quantized, 0)
    integer = use_integers(quantized, product)
    integer.unet.to(torch.bfloat16)
    with torch.no_grad():
        ours = QuantizedNetwork(integer, UNetNetwork(integer.unet))(X, Step(0, TIMESTEPS[0])).eps
    assert ours.dtype == torch.bfloat16
    assert float((ours.float() - expected).norm() / expected.norm()) < 0.05
