"""Caching inside a quantized network: calibrated on the calls that are sampled, and only on those."""

import pytest
import torch

from iec.efficiency.caching import CachedUNetNetwork, find_cut
from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedNetwork, calibrate_step, quantize_unet
from iec.errors import ArtifactError
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Step
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.efficiency.caching.unets import cuts_of, macs_of, make

NOISE = Noise(0, (0, 1, 2), (3, 8, 8))
TABLE = Timetable.spaced("uniform", 3, NoiseSchedule())
REFRESH = frozenset({0, 2})
ALWAYS = ("time_embedding", "class_embedding", "conv_out")


def calibrated(unet, cut, cond):
    """The UNet quantized, and calibrated with a full, a cached and a full call."""
    quantized = quantize_unet(unet, PTQConfig(calibration_images=3, calibration_batch=3, scale_rule="max"), 3)
    inner = CachedUNetNetwork(quantized.unet, cut)
    network, cache, x = QuantizedNetwork(quantized, inner), None, torch.randn(3, 3, 8, 8)
    for i, (t, _) in enumerate(TABLE.pairs):
        step = Step(i, t, "full" if i in REFRESH else "cached")
        calibrate_step(quantized, inner, CalibrationCall(x, step, cond, cache if step.mode == "cached" else None))
        feature = network(x, step, cond, cache).feature
        cache = cache if feature is None else FeatureCache(feature, step)
    return quantized, network


@pytest.mark.parametrize(("name", "cut"), [("pixel", "pixel"), ("labels", 5), ("residual samplers", 2), ("text", 2)])
def test_rows_of_deep_layers_stay_uncalibrated_at_cached_steps(name, cut):
    unet, cond = make(name)
    quantized, network = calibrated(unet, cut, cond)
    shallow = (*find_cut(unet, cut).down, *find_cut(unet, cut).up, *ALWAYS)
    rows = {key: tuple(quantizer.calibrated.tolist()) for key, quantizer in quantized.quantizers().items()}
    reached = {key for key in rows if key.startswith(tuple(f"{part}." for part in shallow))}
    assert rows == {key: (True, key in reached, True) for key in rows}
    assert 0 < len(reached) < len(rows)
    states = list(Sampler(TABLE, refresh=REFRESH).trajectory(network, NOISE, cond))
    assert torch.isfinite(states[-1]).all()
    with pytest.raises(ArtifactError, match="no calibration for sampling step 1"):
        list(Sampler(TABLE, refresh=frozenset(range(3))).trajectory(network, NOISE, cond))
    with pytest.raises(ArtifactError):
        network(states[1], Step(1, 300), cond)


@pytest.mark.parametrize("name", ["pixel", "text"])
def test_a_quantized_full_call_by_parts_is_the_quantized_unet(name):
    unet, cond = make(name)
    quantized, network = calibrated(unet, 1, cond)
    x, step = torch.randn(3, 3, 8, 8), Step(0, 700)
    full = network(x, step, cond)
    assert torch.equal(full.eps, QuantizedNetwork(quantized)(x, step, cond).eps)
    cached = network(x, Step(0, 700, "cached"), cond, FeatureCache(full.feature, step))
    assert torch.equal(cached.eps, full.eps)


def test_corrections_go_to_refresh_steps_only():
    unet, cond = make("labels")
    _, network = calibrated(unet, "pixel", cond)
    corrected = Sampler(TABLE, Correction(1), Placement("all_steps"), refresh=REFRESH)
    assert corrected.corrected == REFRESH
    plain = list(Sampler(TABLE, refresh=REFRESH).trajectory(network, NOISE, cond))
    assert not torch.equal(list(corrected.trajectory(network, NOISE, cond))[-1], plain[-1])


@pytest.mark.parametrize("name", ["pixel", "residual samplers", "text"])
def test_a_quantized_unet_has_the_cuts_and_costs_of_the_float_one(name):
    unet, cond = make(name)
    cond = None if cond is None else cond[:1]
    quantized = quantize_unet(unet, PTQConfig(), 3).unet
    for k in cuts_of(unet):
        assert find_cut(quantized, k) == find_cut(unet, k)
    assert macs_of(quantized, 1, (3, 8, 8), cond) == macs_of(unet, 1, (3, 8, 8), cond)
