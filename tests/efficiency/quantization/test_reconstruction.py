import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.quantization import (
    CalibrationCall,
    PTQConfig,
    QuantizedNetwork,
    Reconstruction,
    calibrate,
    calibrate_step,
    load_calibration,
    quantize_unet,
    reconstruct,
    save_calibration,
)
from iec.efficiency.quantization.artifact import calibration_tensors
from iec.efficiency.quantization.learning import collect
from iec.efficiency.quantization.reconstruction import draw
from iec.efficiency.quantization.units import units
from iec.errors import ArtifactError, ConfigError, NonFiniteError
from iec.models.unet import UNetNetwork
from iec.sampling.network import FeatureCache, Prediction, Step
from tests.efficiency.quantization.conftest import TIMESTEPS

QUICK = Reconstruction(iterations=3, batch_size=4, samples=12, learning_rate=0.3)


def calls_of(images, cond=None):
    return [CalibrationCall(x, Step(i, t), cond) for i, (x, t) in enumerate(zip(images, TIMESTEPS, strict=True))]


@pytest.fixture(scope="session")
def make(unet, images):
    """A calibrated W4A8 network, ready to be reconstructed by ``unit``."""
    nearest = quantize_unet(unet, PTQConfig(weight_bits=4, scale_rule="max", calibration_images=4), 3)
    calibrate(nearest, UNetNetwork(nearest.unet), calls_of(images))

    def made(unit="layer", settings=QUICK, **changes):
        quantized = copy.deepcopy(nearest)
        quantized.config = replace(nearest.config, reconstruct=unit, reconstruction=replace(settings, **changes))
        return quantized

    return made


def run(quantized, unet, calls, **options):
    reconstruct(quantized, UNetNetwork(quantized.unet), unet, UNetNetwork(unet), calls, **options)
    return quantized


def same(a, b):
    a, b = calibration_tensors(a), calibration_tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def few(monkeypatch):
    """Reconstruct these units only, to save time."""
    names = ["time_embedding.linear_1", "conv_in", "down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.to_q",
             "up_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.1.conv2", "conv_out"]  # fmt: skip
    monkeypatch.setattr("iec.efficiency.quantization.reconstruction.units", lambda *_: names)
    return names


def samples_of(name, quantized, unet, calls, folder):
    folder.mkdir()
    return collect(name, quantized, UNetNetwork(quantized.unet), unet, UNetNetwork(unet), calls, folder)


@torch.no_grad()
def error_of(name, quantized, samples):
    """Mean squared error of a unit on all of its samples, hardened, a step at a time as it is sampled."""
    module, total = quantized.unet.get_submodule(name), 0.0
    for row in range(3):
        index = (samples.steps == row).nonzero()[:, 0]
        arguments = samples.quantized.read(index, torch.device("cpu"))
        positional = [value for key, value in arguments.items() if isinstance(key, int)]
        with quantized.context.reading(row):
            output = module(*positional, **{key: value for key, value in arguments.items() if isinstance(key, str)})
        total += float((output - samples.targets[index]).square().sum())
    return total


@pytest.mark.parametrize(
    ("unit", "name"),
    [("layer", "up_blocks.0.resnets.0.conv1"), ("layer", "time_embedding.linear_2"), ("layer", "down_blocks.0.downsamplers.0.conv"),
     ("block", "up_blocks.0.resnets.0"), ("block", "mid_block.attentions.0")],
)  # fmt: skip
def test_the_error_of_a_unit_falls_below_that_of_nearest(make, unet, images, tmp_path, monkeypatch, unit, name):
    quantized = make(unit, iterations=80, batch_size=12, learning_rate=0.1)
    monkeypatch.setattr("iec.efficiency.quantization.reconstruction.units", lambda *_: [name])
    samples = samples_of(name, quantized, unet, calls_of(images), tmp_path / "a")
    before = error_of(name, quantized, samples)
    run(quantized, unet, calls_of(images))
    assert error_of(name, quantized, samples) < 0.8 * before
    others = {key for key, layer in quantized.layers().items() if layer.rounded_up is None}
    assert others == {key for key in quantized.layers() if not f"{key}.".startswith(f"{name}.")}


class Tiny(nn.Module):
    """A network of one linear layer, 1 x 1 images of 5 channels."""

    def __init__(self):
        super().__init__()
        self.up_blocks, self.mid_block, self.down_blocks = [], None, [nn.Module()]
        self.linear = nn.Linear(5, 2)

    def forward(self, x, t):
        return Prediction(self.linear(x.flatten(1)))  # a diffusers output has a field ``sample``


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_tiny_layer_gets_nearly_the_best_of_all_roundings(seed):
    torch.manual_seed(seed)
    tiny = Tiny().requires_grad_(False)
    x = torch.randn(256, 5) @ torch.randn(5, 5)  # correlated inputs: nearest is not the best
    settings = Reconstruction(iterations=200, batch_size=256, samples=256, regularizer=10.0)
    config = PTQConfig(3, activation_bits=32, split_skips=False, reconstruct="layer", reconstruction=settings)
    quantized = quantize_unet(tiny, config, 1)

    def network(module):
        return lambda x, step, cond=None, cache=None: module(x, step.timestep)

    layer, target = quantized.layers()["linear"], tiny.linear(x)
    low = (layer.layer.weight / layer.weight_grid()[0]).floor()

    def error(row, bits):
        steps = (low[row] + torch.tensor(bits)).clamp(*(bound[row] for bound in layer.weight_grid()[1:]))
        weight = steps * layer.weight_delta[0, row]
        return float((x @ weight + tiny.linear.bias[row] - target[:, row]).square().mean())

    def found():
        return [error(row, layer.rounding()[row].float().tolist()) for row in range(2)]

    best = [min(error(row, bits) for bits in itertools.product((0.0, 1.0), repeat=5)) for row in range(2)]
    nearest = found()
    reconstruct(quantized, network(quantized.unet), tiny, network(tiny), [CalibrationCall(x[:, :, None, None], Step(0, 1))])
    assert sum(best) < 0.7 * sum(nearest)
    assert sum(found()) <= 1.1 * sum(best)
    assert torch.allclose(F.linear(x, layer.quantized_weight, tiny.linear.bias).sub(target).square().mean(0), torch.tensor(found()))


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_units_hold_every_layer_once_in_the_order_of_the_network(make, unet, images, unit):
    quantized = make(unit)
    names = units(quantized, unet, lambda: unet(images[0], 900))
    members = [[layer for layer in quantized.layers() if f"{layer}.".startswith(f"{name}.")] for name in names]
    assert sorted(itertools.chain(*members)) == sorted(quantized.layers())
    assert names[0] == "time_embedding.linear_1" and names[-1] == "conv_out"
    parts = ["time_embedding", "conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"]
    found = [next(i for i, part in enumerate(parts) if name.startswith(part)) for name in names]
    assert found == sorted(found)
    resnet = "up_blocks.0.resnets.0"
    assert (resnet in names) == (unit == "block") and (f"{resnet}.conv1" in names) == (unit == "layer")
    if unit == "layer":  # conv_shortcut is registered last and so is norm1; the shortcut runs after conv2
        assert names.index(f"{resnet}.conv1") < names.index(f"{resnet}.time_emb_proj") < names.index(f"{resnet}.conv2")


def test_a_unit_of_one_layer_is_the_same_in_both(make, unet, images):
    layer, block = (run(make(unit), unet, calls_of(images)).layers() for unit in ("layer", "block"))
    for name in ("time_embedding.linear_1", "time_embedding.linear_2", "conv_in"):  # nothing before them differs
        assert torch.equal(layer[name].rounding(), block[name].rounding())
    inner = "down_blocks.0.resnets.0.conv2"
    assert not torch.equal(layer[inner].rounding(), block[inner].rounding())


def test_no_iterations_leave_rounding_to_nearest(make, unet, images):
    quantized = make(iterations=0)
    nearest = {name: layer.quantized_weight.clone() for name, layer in quantized.layers().items()}
    run(quantized, unet, calls_of(images))
    assert all(torch.equal(layer.quantized_weight, nearest[name]) for name, layer in quantized.layers().items())
    assert all(layer.rounded_up is not None and layer.learning is None for layer in quantized.layers().values())


def test_the_result_is_a_function_of_the_arguments(few, make, unet, images):
    first, second = (run(make(), unet, calls_of(images)) for _ in range(2))
    assert same(first, second)
    assert not same(first, run(make(iterations=4), unet, calls_of(images)))


def test_steps_are_learned_where_samples_were_and_zero_points_stay(make, unet, images):
    quantized, before = make("block", step_learning_rate=0.01, samples=8), make("block")
    run(quantized, unet, calls_of(images)[:2])
    for name, quantizer in quantized.quantizers().items():
        old = before.quantizers()[name]
        assert (quantizer.delta != old.delta).tolist() == [True, True, False], name
        assert ((quantizer.delta / old.delta - 1).abs() < 0.05).all()
        assert torch.equal(quantizer.zero_point, old.zero_point) and quantizer.log_scale is None


def test_inputs_come_from_the_float_network_where_wanted(few, make, unet, images):
    def found(share):
        quantized = run(make(quantized_input=share), unet, calls_of(images))
        return [quantized.layers()[name].rounding() for name in ("conv_in", "conv_out")]

    own, mixed, theirs = found(1.0), found(0.5), found(0.0)
    assert not torch.equal(own[-1], mixed[-1]) and not torch.equal(own[-1], theirs[-1])
    assert torch.equal(mixed[0], theirs[0])  # the network's own input is the same in both


def test_cached_calls_teach_the_layers_that_they_reach(make, unet, images, tmp_path):
    """Steps 0 and 2 are full, step 1 cached: deep layers have no sample of it, shallow ones do, with the full call's target."""
    quantized, feature = make(), UNetCaching(unet)
    network = CachedUNetNetwork(quantized.unet, 0)
    calls = feature.calls(images)
    for call in calls:
        calibrate_step(quantized, network, call)
    reference, rows = CachedUNetNetwork(unet, 0), {}
    shallow, deep = (
        ("conv_in", "up_blocks.1.resnets.1.conv1", "conv_out"),
        ("mid_block.resnets.0.conv1", "down_blocks.1.resnets.0.conv1"),
    )
    for name in shallow + deep:
        (tmp_path / name).mkdir()
        samples = collect(name, quantized, network, unet, reference, calls, tmp_path / name)
        rows[name] = samples.steps.tolist()
        if name == "conv_out":
            expected = torch.cat([UNetNetwork(unet)(call.x, call.step).eps for call in calls])
            torch.testing.assert_close(samples.targets, expected)
    every, full = [0] * 4 + [1] * 4 + [2] * 4, [0] * 4 + [2] * 4
    assert list(rows.values()) == [every, every, every, full, full]
    reconstruct(quantized, network, unet, reference, calls)
    assert all(layer.rounded_up is not None for layer in quantized.layers().values())
    only_cached = make()
    calibrate_step(only_cached, CachedUNetNetwork(only_cached.unet, 0), calls[1])
    reconstruct(only_cached, CachedUNetNetwork(only_cached.unet, 0), unet, reference, calls[1:2])
    unreached = {name for name, layer in only_cached.layers().items() if layer.rounded_up is None}
    assert "mid_block.resnets.0.conv1" in unreached and "conv_out" not in unreached


class UNetCaching:
    """Float calls of a run whose middle step is cached."""

    def __init__(self, unet):
        self.network = CachedUNetNetwork(unet, 0)

    def calls(self, images):
        made = self.network(images[0], Step(0, 900))
        cache = FeatureCache(made.feature, Step(0, 900))
        first, _, last = calls_of(images)
        return [first, CalibrationCall(images[1], Step(1, 500, "cached"), cache=cache), last]


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_a_conditional_unet(conditional_unet, unit):
    torch.manual_seed(5)
    images, cond = torch.randn(3, 4, 4, 8, 8), torch.randn(4, 5, 24)
    config = PTQConfig(4, scale_rule="max", calibration_images=4, reconstruct=unit, reconstruction=QUICK)
    quantized = quantize_unet(conditional_unet, config, 3)
    calls = calls_of(images, cond)
    calibrate(quantized, UNetNetwork(quantized.unet), calls)
    before = [QuantizedNetwork(quantized)(x, call.step, cond).eps for x, call in zip(images, calls, strict=True)]
    seen = []
    run(quantized, conditional_unet, calls, progress=lambda done, total: seen.append((done, total)))
    after = [QuantizedNetwork(quantized)(x, call.step, cond).eps for x, call in zip(images, calls, strict=True)]
    assert all(layer.rounded_up is not None for layer in quantized.layers().values())
    assert all(torch.isfinite(b).all() and not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert seen == [(k, seen[-1][1]) for k in range(seen[-1][1] + 1)]


def test_guidance_that_doubles_the_batch_doubles_the_samples(make, unet, images, tmp_path):
    quantized = make()

    def doubled(network):
        return lambda x, step, cond=None, cache=None: network(torch.cat([x, x]), step, cond, cache)

    (tmp_path / "a").mkdir()
    calls, networks = calls_of(images), (doubled(UNetNetwork(quantized.unet)), unet, doubled(UNetNetwork(unet)))
    assert collect("conv_out", quantized, *networks, calls, tmp_path / "a").steps.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_interrupted_and_resumed_gives_the_same(few, make, unet, images, tmp_path):
    whole = run(make(step_learning_rate=0.001), unet, calls_of(images))

    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        run(make(step_learning_rate=0.001), unet, calls_of(images), checkpoint=tmp_path, progress=kill)
    assert len(list(tmp_path.iterdir())) == 5
    seen = []
    resumed = make(step_learning_rate=0.001)
    run(resumed, unet, calls_of(images), checkpoint=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] == 5 and same(whole, resumed)
    for i, x in enumerate(images):
        step = Step(i, TIMESTEPS[i])
        assert torch.equal(QuantizedNetwork(whole)(x, step).eps, QuantizedNetwork(resumed)(x, step).eps)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert same(whole, run(make(step_learning_rate=0.001), unet, calls_of(images), checkpoint=tmp_path))
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_checkpoint_of_something_else_is_left_aside(few, make, unet, images, tmp_path):
    run(make(), unet, calls_of(images), checkpoint=tmp_path)
    count = len(list(tmp_path.iterdir()))
    for quantized, calls in ((make(), calls_of(images + 1)), (make(iterations=4), calls_of(images))):
        seen = []
        run(quantized, unet, calls, checkpoint=tmp_path, progress=lambda done, total, seen=seen: seen.append(done))
        assert seen[0] == 0
    assert len(list(tmp_path.iterdir())) == 3 * count == 3 * len(few)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is not a complete calibration file"):
        run(make(), unet, calls_of(images), checkpoint=tmp_path)


@pytest.mark.parametrize("settings", [{}, {"step_learning_rate": 0.01}])
def test_a_saved_reconstruction_gives_the_same_bits(few, make, unet, images, tmp_path, settings):
    quantized = run(make(**settings), unet, calls_of(images))
    save_calibration(tmp_path / "a", quantized, {})
    loaded = quantize_unet(unet, quantized.config, 3)
    load_calibration(tmp_path / "a", loaded, {})
    for i, x in enumerate(images):
        step = Step(i, TIMESTEPS[i])
        assert torch.equal(QuantizedNetwork(loaded)(x, step).eps, QuantizedNetwork(quantized)(x, step).eps)
    stored = calibration_tensors(loaded)["conv_in.rounded_up"]
    assert stored.dtype == torch.uint8 and len(stored) == 32 * 3 * 9 // 8
    other = quantize_unet(unet, replace(quantized.config, reconstruct="none"), 3)
    with pytest.raises(ArtifactError, match="config.reconstruct: stored 'layer', expected 'none'"):
        load_calibration(tmp_path / "a", other, {})


def test_samples_are_spread_over_the_calls():
    calls = [CalibrationCall(torch.arange(n).view(n, 1) + 100.0 * i, Step(i, 10)) for i, n in enumerate((4, 1, 4))]
    drawn = draw(calls, 7)
    assert [len(call.x) for call in drawn] == [3, 1, 3] and [call.step.index for call in drawn] == [0, 1, 2]
    assert all(len(set(call.x[:, 0].tolist())) == len(call.x) for call in drawn)
    assert [len(call.x) for call in draw(calls, 2)] == [1, 1] and [len(call.x) for call in draw(calls, 99)] == [4, 1, 4]
    assert all(torch.equal(a.x, b.x) for a, b in zip(drawn, draw(calls, 7), strict=True))


def test_what_cannot_be_reconstructed(make, unet, images):
    with pytest.raises(ConfigError, match=r"efficiency\.reconstruct=none\. Use layer or block"):
        run(make("none"), unet, calls_of(images))
    with pytest.raises(ConfigError, match="needs calibration calls"):
        run(make(), unet, [])
    corrected = make()
    layer = corrected.layers()["up_blocks.0.resnets.0.conv1"]
    layer.set_correction(torch.ones(3, 64), torch.zeros(3, 64))
    with pytest.raises(ConfigError, match="Reconstruct first"):
        run(corrected, unet, calls_of(images))
    uncalibrated = quantize_unet(unet, make().config, 3)
    with pytest.raises(ArtifactError, match=r"time_embedding\.linear_1\.input has no calibration for sampling step 0"):
        run(uncalibrated, unet, calls_of(images))


def test_a_loss_that_is_not_finite_names_its_unit(make, unet, images):
    broken = copy.deepcopy(unet)
    broken.down_blocks[0].resnets[0].conv1.bias.data[0] = float("nan")
    quantized = make()
    with pytest.raises(NonFiniteError, match=r"down_blocks\.0\.resnets\.0\.conv1 diverged at iteration 0.*learning_rate"):
        run(quantized, broken, calls_of(images))
    assert all(layer.learning is None for layer in quantized.layers().values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": -1}, "reconstruction.iterations=-1 .*at least 0"),
        ({"batch_size": 0}, "reconstruction.batch_size=0"),
        ({"samples": 1.5}, "reconstruction.samples=1.5"),
        ({"learning_rate": -1}, r"reconstruction.learning_rate=-1 is outside \[0, 10\]"),
        ({"quantized_input": 1.5}, r"quantized_input=1.5 is outside \[0, 1\]"),
        ({"warmup": float("nan")}, "warmup=nan"),
    ],
)
def test_settings_of_a_reconstruction_that_cannot_be_run(settings, message):
    with pytest.raises(ConfigError, match=message):
        Reconstruction(**settings)
