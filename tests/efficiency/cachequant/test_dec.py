"""Both fits are least squares of what they say, on the halves of the layers that the network really computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from iec.efficiency.cachequant import CacheTables, Consumer, CorrectedCacheNetwork, fit_cache, fit_quantization
from iec.efficiency.cachequant.trajectories import with_source
from iec.efficiency.caching import CachedUNetNetwork, find_cut
from iec.efficiency.quantization import PTQConfig, calibrate, quantize_unet
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Step
from iec.sampling.noise import Noise
from tests.efficiency.cachequant.conftest import REFRESH, SHAPE, TABLE
from tests.efficiency.caching.unets import CASES, cuts_of, make

COUNT = 3
W4A4 = PTQConfig(weight_bits=4, activation_bits=4, scale_rule="max", calibration_images=COUNT)


def features(runs):
    """F_i of all images at once, [T][COUNT, C, h, w]."""
    found = [[] for _ in range(len(TABLE))]
    for call in runs.calls(COUNT, "test"):
        found[call.step.index].append(call.feature)
    return [torch.cat(parts) for parts in found]


def least_squares(x, y):
    """[O, 2] of x, y [n, O, h, w] by numpy, in float64."""
    u, v = (np.moveaxis(w.detach().double().numpy(), 1, 0).reshape(w.shape[1], -1) for w in (x, y))
    return np.array([np.polyfit(a, b, 1) for a, b in zip(u, v, strict=True)])


@pytest.fixture
def deployed(make_runs):
    """(runs, quantized UNet, tables) for a UNet and cut, calibrated behind the cache correction."""

    def made(name, cut, ptq=W4A4, cond=None):
        runs = make_runs(name, cut, cond)
        tables = fit_cache(runs, REFRESH, COUNT)
        quantized = quantize_unet(runs.network.module, ptq, len(TABLE))
        network = CorrectedCacheNetwork(CachedUNetNetwork(quantized.unet, cut), tables)
        calibrate(quantized, network, runs.calibration_calls(REFRESH, COUNT))
        return runs, quantized, tables

    return made


@pytest.mark.parametrize(("name", "cut"), [("pixel", "pixel"), ("residual samplers", 1)])
def test_the_cache_correction_is_least_squares_on_the_last_refreshed_feature(make_runs, name, cut):
    runs = make_runs(name, cut)
    tables, sequence = fit_cache(runs, REFRESH, COUNT), features(runs)
    assert tables.a.shape == tables.b.shape == (5, runs.network.cut.channels)
    for i, s in enumerate([0, 0, 0, 3, 3]):
        if i == s:
            assert tables.a[i].eq(1).all() and tables.b[i].eq(0).all()
            continue
        expected = least_squares(sequence[s], sequence[i])
        np.testing.assert_allclose(tables.a[i], expected[:, 0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(tables.b[i], expected[:, 1], rtol=1e-6, atol=1e-6)
        plain, corrected = (
            (v.double() - sequence[i].double()).square().mean() for v in (sequence[s], tables.apply(i, sequence[s]))
        )
        assert corrected < plain


def test_runs_are_those_of_the_sampler_image_by_image(make_runs):
    runs = make_runs(batch_size=COUNT)
    states = list(Sampler(TABLE).trajectory(runs.network, Noise(7, tuple(range(COUNT)), SHAPE)))
    for call, x in zip(runs.calls(COUNT, "test"), states, strict=False):
        assert torch.equal(call.x, x)
        assert torch.equal(call.feature, runs.network(x, call.step).feature)
    single = list(replace(runs, batch_size=1).calls(COUNT, "test"))
    for i, feature in enumerate(features(runs)):
        parts = torch.cat([call.feature for call in single if call.step.index == i])
        torch.testing.assert_close(parts, feature, rtol=1e-3, atol=1e-4)


def test_calibration_calls_carry_the_raw_feature_of_the_last_refresh_step(make_runs):
    cond = torch.randn(COUNT, 4, 6)
    runs = make_runs("text", 1, cond)
    calls, sequence = runs.calibration_calls(REFRESH, COUNT), features(runs)
    assert [call.step.mode for call in calls] == ["full", "cached", "cached", "full", "cached"]
    for i, s in ((1, 0), (2, 0), (4, 3)):
        assert calls[i].cache.step == Step(s, TABLE.pairs[s][0])
        assert torch.equal(calls[i].cache.feature, sequence[s])
    assert calls[1].cache is calls[2].cache
    states = list(Sampler(TABLE).trajectory(runs.network, Noise(7, tuple(range(COUNT)), SHAPE), cond))
    for call, x in zip(calls, states, strict=False):
        torch.testing.assert_close(call.x, x.float(), rtol=1e-4, atol=1e-5)  # equal up to the size of the batches
    for call in calls:
        assert torch.equal(call.cond, cond) and call.x.shape == (COUNT, *SHAPE) and call.x.dtype == torch.float32


def test_rows_of_the_conditioning_stay_with_their_images(make_runs):
    """Image 2, alone in the second batch, is conditioned by row 2."""
    cond = torch.randn(3, 4, 6)
    runs, noise = make_runs("text", 1, cond), Noise(7, (2,), SHAPE)
    third = next(call for call in runs.calls(3, "test") if len(call.x) == 1)
    expected = next(iter(Sampler(TABLE).trajectory(runs.network, noise, cond[2:])))
    assert torch.equal(third.x, expected)
    assert torch.equal(third.feature, runs.network(expected, third.step, cond[2:]).feature)


@pytest.mark.parametrize(
    ("name", "cut", "bits"),
    [("pixel", 0, 32), ("pixel", "pixel", 4), ("residual samplers", 0, 4), ("text", 1, 4), ("text", 5, 4)],
)
def test_the_quantization_correction_is_least_squares_on_explicit_outputs(deployed, name, cut, bits):
    cond = torch.randn(COUNT, 4, 6) if name == "text" else None
    ptq = PTQConfig(weight_bits=4, activation_bits=bits, scale_rule="max", calibration_images=COUNT)
    runs, quantized, tables = deployed(name, cut, ptq, cond)
    found = fit_quantization(runs, quantized, tables, COUNT)
    unet, at = runs.network.module, runs.network.cut
    assert set(found) == {layer for layer in at.layers if at.separable or layer.endswith("conv_shortcut")}
    block, c, sequence = unet.get_submodule(at.consumer), at.channels, features(runs)
    for name_, (alpha, beta) in found.items():
        layer, main = quantized.layers()[name_], name_.endswith("conv1")
        padding = 1 if main else 0
        for i, s in enumerate([0, 0, 0, 3, 3]):
            u = tables.apply(i, sequence[s])
            if main:
                skip = torch.randn(len(u), at.skip_channels, *u.shape[-2:])
                u = block.nonlinearity(block.norm1(torch.cat([u, skip], 1)))[:, :c]
            with quantized.context.reading(i):
                uq = layer.inputs[0](u) if bits != 32 else u
            x = F.conv2d(uq, layer.quantized_weight[:, :c], padding=padding)
            y = F.conv2d(u, unet.get_submodule(name_).weight[:, :c], padding=padding)
            expected = least_squares(x, y)
            np.testing.assert_allclose(alpha[i], expected[:, 0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(beta[i], expected[:, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "cut"), [("pixel", 0), ("pixel", "pixel"), ("text", 0)])
def test_the_correction_brings_the_layer_closer_to_the_float_one_at_every_step(deployed, name, cut):
    """In the layer as it is deployed, on the calibration images: the error of the first half alone, with the skip at zero."""
    cond = torch.randn(COUNT, 4, 6) if name == "text" else None
    runs, quantized, tables = deployed(name, cut, cond=cond)
    found = fit_quantization(runs, quantized, tables, COUNT)
    consumer = Consumer(runs.network.module, runs.network.cut)

    def errors():
        total = {}
        for call, source in with_source(runs.calls(COUNT, "test"), REFRESH):
            i = call.step.index
            for layer, u in consumer.inputs(source if i in REFRESH else tables.apply(i, source)).items():
                own = quantized.layers()[layer]
                with quantized.context.reading(i):
                    zero = torch.zeros(len(u), runs.network.cut.skip_channels, *u.shape[-2:])
                    rest = own.inputs[1](zero)  # zero is on the grid or the same offset in both runs
                    deployed_output = own(torch.cat([u, zero], 1))
                    skip = own.layer._conv_forward(rest, own.quantized_weight[:, u.shape[1] :], None)
                exact = consumer.layers[layer]._conv_forward(u, consumer.layers[layer].weight[:, : u.shape[1]], own.layer.bias)
                error = float((deployed_output - skip - exact).double().square().sum())
                total[layer, i] = total.get((layer, i), 0) + error
        return total

    before = errors()
    for layer, (alpha, beta) in found.items():
        quantized.layers()[layer].set_correction(alpha, beta)
    after = errors()
    assert len(before) == 5 * len(found) and all(after[key] < before[key] for key in before)


def test_the_released_bias_rule_adds_what_is_counted_twice(deployed):
    """Regressing with the bias on both sides, and adding beta and the bias: the definition, not the shortcut taken here."""
    runs, quantized, tables = deployed("pixel", "pixel")
    name = f"{runs.network.cut.consumer}.conv_shortcut"
    plain, official = (fit_quantization(runs, quantized, tables, COUNT, official_bias=bias)[name] for bias in (False, True))
    layer, c = runs.network.module.get_submodule(name), runs.network.cut.channels
    u = features(runs)[0]
    own = quantized.layers()[name]
    with quantized.context.reading(0):
        x = F.conv2d(own.inputs[0](u), own.quantized_weight[:, :c], layer.bias)
    expected = least_squares(x, F.conv2d(u, layer.weight[:, :c], layer.bias))
    np.testing.assert_allclose(official[0][0], expected[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(official[1][0], expected[:, 1], rtol=1e-4, atol=1e-5)
    assert torch.equal(plain[0], official[0]) and not torch.allclose(plain[1], official[1])


@pytest.mark.parametrize("name", ["pixel", "residual samplers", "text", "text, residual and self-attention"])
def test_the_halves_of_the_consumer_are_those_of_the_whole_block(name):
    """At every cut: what the block feeds its layers, caught in a run of the block on cat([C, skip])."""
    unet, _ = make(name)
    for k in cuts_of(unet):
        cut = find_cut(unet, k)
        consumer = Consumer(unet, cut)
        assert consumer.block.upsample is None and consumer.block.downsample is None
        caught = {}
        handles = [
            layer.register_forward_pre_hook(lambda _, args, name=layer_name, caught=caught: caught.update({name: args[0]}))
            for layer_name, layer in consumer.layers.items()
        ]
        c, skip = torch.randn(2, cut.channels, 4, 4), 3 + torch.randn(2, cut.skip_channels, 4, 4)
        consumer.block(torch.cat([c, skip], 1), torch.randn(2, consumer.block.time_emb_proj.in_features))
        for handle in handles:
            handle.remove()
        for layer, u in consumer.inputs(c).items():
            torch.testing.assert_close(u, caught[layer][:, : cut.channels], rtol=1e-6, atol=1e-6)
        assert (f"{cut.consumer}.conv1" in consumer.layers) == cut.separable


def test_both_kinds_of_cut_are_among_the_small_unets():
    cuts = [find_cut(unet, k) for unet in (make(name)[0] for name in CASES) for k in cuts_of(unet)]
    assert {cut.separable for cut in cuts} == {True, False}


def test_a_unit_correction_of_zero_shift_changes_nothing(deployed):
    runs, quantized, tables = deployed("pixel", 0)
    network = CachedUNetNetwork(quantized.unet, 0)
    x, cache = torch.randn(2, *SHAPE), FeatureCache(features(runs)[0][:2], Step(0, 800))
    step = Step(1, 600, "cached")
    with quantized.context.reading(1):
        before = network(x, step, cache=cache).eps
        for name in fit_quantization(runs, quantized, tables, 2):
            width = len(quantized.layers()[name].quantized_weight)
            quantized.layers()[name].set_correction(torch.ones(5, width), torch.zeros(5, width))
        assert torch.equal(network(x, step, cache=cache).eps, before)


def test_official_divisors_reach_both_fits(deployed):
    runs, quantized, tables = deployed("pixel", "pixel")
    n = COUNT * 4 * 4
    official = fit_cache(runs, REFRESH, COUNT, official_divisors=True)
    torch.testing.assert_close(official.a[1], tables.a[1] * (n - 1) / n)
    plain, other = (fit_quantization(runs, quantized, tables, COUNT, official_divisors=flag) for flag in (False, True))
    for name in plain:
        torch.testing.assert_close(other[name][0], plain[name][0] * (n - 1) / n)


def test_tables_move_with_the_network_and_know_their_source():
    tables = CacheTables.identity(frozenset({0, 3}), 5, 2)
    assert [tables.source(i) for i in range(5)] == [0, 0, 0, 3, 3]
    assert tables.to("meta").a.device.type == "meta"
