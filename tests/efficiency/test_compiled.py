"""Compiled networks: the same values, as few graphs as there are modes, nothing stale, and refusals.

Most graphs here are run by torch operation by operation (``backend`` below), so that they equal the eager network bit for bit.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir
from torch.nn import functional as F

from iec.efficiency.added_errors import ErrorGain, StaleNetwork
from iec.efficiency.cachequant import CacheTables, CorrectedCacheNetwork
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.forecast import Extrapolated, Probed
from iec.efficiency.compiled import CACHE, compiled, kernels_in, require_compiler
from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedNetwork, calibrate, quantize_unet
from iec.errors import ArtifactError, ConfigError, DeviceError
from iec.models.unet import UNetNetwork
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.guidance import guided
from iec.sampling.network import Step, renewed
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.efficiency.caching.unets import _pixel, text_unet

SHAPE, REFRESH = (3, 8, 8), frozenset({0, 2})
TABLE = Timetable.spaced("uniform", 5, NoiseSchedule())
BATCHES = (Noise(0, (0, 1), SHAPE), Noise(0, (2, 3), SHAPE))
PLAIN = {"down_block_types": ("DownBlock2D",), "layers_per_block": 1, "block_out_channels": (8,), "mid_block_type": None}


def small_unet(attention=True):
    return _pixel(**PLAIN, up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D",), attention_head_dim=4)


@dataclass
class Output:
    sample: torch.Tensor


class Line(nn.Module):
    """The least that can stand for a UNet."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, t):
        return Output(F.silu(self.layer(x)) * t.view(-1, 1, 1, 1))


class Backend:
    """Runs a graph as it is, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


def quantized(network_of, refresh, unet=None, **settings):
    """A calibrated network; ``network_of`` makes a network of a UNet."""
    unet = unet or small_unet()
    quantized = quantize_unet(unet, PTQConfig(scale_rule="max", calibration_images=2, **settings), len(TABLE))
    network, cache, calls = network_of(unet), None, []
    for i, (t, _) in enumerate(TABLE.pairs):
        step, x = Step(i, t, "full" if i in refresh else "cached"), torch.randn(2, *SHAPE)
        calls.append(CalibrationCall(x, step, cache=None if step.mode == "full" else cache))
        cache = renewed(cache, network(x, step, None, cache), step)
    calibrate(quantized, network_of(quantized.unet), calls)
    return QuantizedNetwork(quantized, network_of(quantized.unet))


def cachequant():
    def corrected(unet):
        network, tables = CachedUNetNetwork(unet, 0), torch.randn(2, len(TABLE), 8) / 4
        return CorrectedCacheNetwork(network, CacheTables(REFRESH, 1 + tables[0], tables[1]))

    torch.manual_seed(0)
    network = quantized(corrected, REFRESH, split_skips=True, activation_granularity="channel", weight_bits=4)
    for layer in network.quantized.layers().values():
        if layer.split is not None:
            layer.set_correction(1 + torch.randn(len(TABLE), len(layer.layer.weight)) / 4, torch.randn(len(TABLE), 8) / 4)
    return network


EVERY = frozenset(range(len(TABLE)))
NETWORKS = {
    "none": (lambda: UNetNetwork(small_unet()), None, 1),
    "ptq": (lambda: quantized(UNetNetwork, EVERY), None, 1),
    "deepcache": (lambda: CachedUNetNetwork(small_unet(False), 0), REFRESH, 2),
    "forecast": (lambda: CachedUNetNetwork(small_unet(False), 0, Extrapolated(order=2)), REFRESH, 2),
    "probe": (lambda: CachedUNetNetwork(small_unet(False), 0, Probed()), REFRESH, 2),
    "cachequant": (cachequant, REFRESH, 2),
    "error": (lambda: ErrorGain().disturbed(UNetNetwork(Line())), None, 1),
    "stale": (lambda: StaleNetwork(UNetNetwork(Line())), REFRESH, 1),
}


def run(network, refresh, cond=None, evaluate_at="t"):
    """The last states of two batches, with corrections."""
    sampler = Sampler(TABLE, Correction(evaluate_at=evaluate_at), Placement("all_steps", cached_steps="cached"), refresh)
    return [list(sampler.trajectory(network, noise, cond))[-1] for noise in BATCHES]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_technique_has_a_graph_for_each_mode_whatever_the_step_the_correction_and_the_batch(name):
    make, refresh, graphs = NETWORKS[name]
    eager, backend = make(), Backend()
    for a, b in zip(run(eager, refresh), run(compiled(eager, backend), refresh), strict=True):
        assert torch.equal(a, b)
    assert backend.graphs == graphs


def test_guidance_and_the_timesteps_of_heun_need_no_graphs_of_their_own():
    unet = text_unet(
        down_block_types=("DownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), block_out_channels=(8,), mid_block_type=None
    )
    eager, cond, backend = CachedUNetNetwork(unet, 0), torch.randn(2, 2, 4, 6), Backend()
    states = [run(guided(network, 3.0), REFRESH, cond, "s") for network in (eager, compiled(eager, backend))]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert backend.graphs == 2


X = torch.randn(2, *SHAPE)


@torch.no_grad()
def test_weights_that_change_change_what_is_compiled():
    eager, backend = UNetNetwork(Line()), Backend()
    graphs = compiled(eager, backend)
    before = graphs(X, Step(0, 5)).eps
    eager.module.layer.weight.mul_(2)
    assert torch.equal(graphs(X, Step(0, 5)).eps, eager(X, Step(0, 5)).eps) and not torch.equal(graphs(X, Step(0, 5)).eps, before)
    eager.module.layer.weight = nn.Parameter(torch.zeros(8, 8), requires_grad=False)
    assert torch.equal(graphs(X, Step(0, 5)).eps, eager(X, Step(0, 5)).eps)
    assert backend.graphs == 1


@torch.no_grad()
def test_graphs_of_one_network_do_not_count_against_the_limit_of_another():
    """Torch compiles a piece of code 8 times at most: a table has more cells."""
    assert torch._dynamo.config.recompile_limit == 8
    for _ in range(10):
        eager, backend = UNetNetwork(Line()), Backend()
        assert torch.equal(compiled(eager, backend)(X, Step(0, 5)).eps, eager(X, Step(0, 5)).eps)
        assert backend.graphs == 1


@torch.no_grad()
def test_scales_that_change_change_what_is_compiled_and_steps_without_are_refused():
    network = quantized(UNetNetwork, EVERY, Line())
    graphs, step = compiled(network, Backend()), Step(1, 400)
    before, layer = graphs(X, step).eps, network.quantized.layers()["layer"]
    (quantizer,) = layer.inputs
    quantizer.set_steps(2 * quantizer.delta, quantizer.zero_point, quantizer.calibrated)
    layer.set_rounding(layer.rounding().logical_not())
    assert torch.equal(graphs(X, step).eps, network(X, step).eps) and not torch.equal(graphs(X, step).eps, before)
    quantizer.clear_step(1)
    with pytest.raises(ArtifactError, match=r"layer\.input has no calibration for sampling step 1"):
        graphs(X, step)
    with pytest.raises(ArtifactError, match="Sampling step 9 has no scales"):
        graphs(X, Step(9, 400))


def test_deep_layers_have_to_be_calibrated_for_full_calls_only():
    network = quantized(lambda unet: CachedUNetNetwork(unet, 0), REFRESH)
    graphs = compiled(network, Backend())  # nothing is compiled: steps are refused before
    with pytest.raises(ArtifactError, match=r"down_blocks.* has no calibration for sampling step 1"):
        graphs(X, Step(1, 400))
    uncalibrated = {name for name, quantizer in network.quantized.quantizers().items() if not quantizer.calibrated[1]}
    assert uncalibrated == {name for name in network.quantized.quantizers() if name.startswith(network.network.skipped)}


def test_networks_without_a_compiled_form_are_refused(linear_network):
    with pytest.raises(ConfigError, match="has no compiled form"):
        compiled(linear_network(0.5))
    network = quantized(UNetNetwork, EVERY, Line())
    network.quantized.layers = dict  # as with integer kernels
    with pytest.raises(ConfigError, match=r"efficiency\.kernels=simulated"):
        compiled(network)


@pytest.mark.parametrize("before", [None, default_cache_dir(), "elsewhere"])
def test_inductor_keeps_its_kernels_in_the_artifacts_unless_the_environment_names_a_folder(tmp_path, monkeypatch, before):
    """Inductor itself names its default there once it is loaded."""
    monkeypatch.chdir(tmp_path)
    if before is None:
        monkeypatch.delenv(CACHE, raising=False)
    else:
        monkeypatch.setenv(CACHE, before)
    with kernels_in(tmp_path):
        assert cache_dir() == str(Path.cwd() / "elsewhere" if before == "elsewhere" else tmp_path / "0")
    assert os.environ.get(CACHE) == before


def test_kernels_of_a_process_that_was_killed_are_compiled_again(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    with pytest.raises(KeyboardInterrupt), kernels_in(tmp_path):
        (Path(cache_dir()) / "kernel").write_bytes(b"half")
        raise KeyboardInterrupt
    with kernels_in(tmp_path):
        assert not (Path(cache_dir()) / "kernel").exists()
        (Path(cache_dir()) / "kernel").write_bytes(b"whole")
    with kernels_in(tmp_path):
        assert (Path(cache_dir()) / "kernel").read_bytes() == b"whole"


def test_a_second_holder_of_the_lock_leaves_the_kernels_of_the_first_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    with kernels_in(tmp_path):
        first = Path(cache_dir()) / "kernel"
        first.write_bytes(b"whole")
        monkeypatch.delenv(CACHE)  # as in another process
        with kernels_in(tmp_path):
            assert Path(cache_dir()) != first.parent
        assert first.read_bytes() == b"whole"
    with kernels_in(tmp_path):
        assert Path(cache_dir()) == first.parent


def test_a_machine_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"no no-such-compiler.*model\.compile=false"):
        require_compiler(torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"pip install triton.*model\.compile=false"):
        require_compiler(torch.device("cuda"))
