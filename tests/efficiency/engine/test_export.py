"""Whole networks in files, under ONNX Runtime, beside the networks in torch."""

import copy
from dataclasses import replace

import pytest
import torch

import iec
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.forecast import Extrapolated
from iec.efficiency.engine.export import export
from iec.efficiency.engine.file import read_file
from iec.efficiency.engine.network import EngineNetwork
from iec.efficiency.engine.verify import require_close
from iec.efficiency.integer import require_integers, use_integers
from iec.efficiency.quantization import PTQConfig, QuantizedNetwork
from iec.efficiency.technique import Prepared
from iec.errors import ConfigError
from iec.models.source import Source
from iec.sampling.network import FeatureCache, Step
from iec.sampling.timetable import Timetable
from tests.efficiency.caching.unets import CASES
from tests.efficiency.engine.conftest import REFRESH, model_of
from tests.models.tiny import tiny


@pytest.fixture(scope="module")
def quantized(model, table):
    """W8A8."""
    return iec.quantize(model, PTQConfig(scale_rule="max", calibration_images=2), table)


def exported(model, network, table, write, refresh=None, engine="onnxruntime"):
    files = export(model, Prepared(network), table, refresh, {}, "", engine)
    return EngineNetwork.of(read_file(write(files.full, files.cached)), "onnxruntime", 1)


def closeness(model, network, table, write, refresh=None, engine="onnxruntime"):
    file = exported(model, network, table, write, refresh, engine)
    return require_close(model, network, file, table, refresh, file.description.arithmetic)


@pytest.mark.parametrize("name", ["ldm_lsun_church", "ldm_imagenet"])
def test_every_kind_of_model_is_exported_with_its_cache(name, write):
    model = Source.of(tiny(name), random_weights=True).load("cpu")
    card = model.card
    table = Timetable.spaced(card.spacing, 4, card.schedule, final=card.final)
    assert closeness(model, CachedUNetNetwork(model.unet, card.cut), table, write, REFRESH) < 1e-5


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_quantized_network_is_as_close_as_it_is_to_itself(model, table, quantized, write, engine):
    """Under ONNX Runtime both forms, the other engine's in float arithmetic."""
    closeness(model, quantized, table, write, engine=engine)


def test_an_image_does_not_depend_on_its_batch(model, table, write):
    network = exported(model, model.network, table, write)
    x = torch.randn(3, 3, 8, 8)
    together = network(x, Step(1, table.pairs[1][0])).eps
    alone = torch.cat([network(x[k : k + 1], Step(1, table.pairs[1][0])).eps for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_cached_call_at_the_step_of_its_feature_is_the_full_call(model, table, write):
    network = exported(model, CachedUNetNetwork(model.unet, "pixel"), table, write, REFRESH)
    x, step = torch.randn(2, 3, 8, 8), Step(0, table.pairs[0][0])
    full = network(x, step)
    cached = network(x, replace(step, mode="cached"), None, FeatureCache(full.feature, step))
    torch.testing.assert_close(cached.eps, full.eps, rtol=1e-5, atol=1e-6)


def test_equal_networks_are_equal_files(model, table, float_bytes):
    again = export(model, Prepared(model.network), table, None, {}, "", "onnxruntime").full
    assert again == float_bytes


def test_a_call_that_the_file_has_no_form_of_is_refused(model, table, write):
    network, x = exported(model, model.network, table, write), torch.randn(1, 3, 8, 8)
    for step in (Step(0, 5), Step(4, 0), Step(-1, 0)):
        with pytest.raises(ConfigError, match="by their index"):
            network(x, step)
    with pytest.raises(ConfigError, match="Export a cell that caches one"):
        network(x, Step(0, table.pairs[0][0], "cached"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PTQConfig(activation_bits=16), "activation_bits=8 or fewer"),
        (PTQConfig(end_bits=32), "end_bits=8 or fewer"),
        (PTQConfig(activation_granularity="channel"), "activation_granularity=tensor"),
    ],
)
def test_a_quantization_without_integers_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        require_integers(config, "export efficiency=none")
    require_integers(PTQConfig(), "export efficiency=none")


def test_networks_that_are_no_unet_are_refused(model, table, quantized):
    def constant(x, step, cond=None, cache=None):
        return x

    half = replace(model, unet=CASES["pixel"][0]().half())
    integer = QuantizedNetwork(use_integers(copy.deepcopy(quantized.quantized)))
    for network, message in [
        (constant, "A function cannot be exported"),
        (half.network, "model.dtype=float32"),
        (integer, "efficiency.kernels=simulated"),
        (CachedUNetNetwork(model.unet, "pixel", Extrapolated()), "efficiency.forecast=none"),
    ]:
        with pytest.raises(ConfigError, match=message):
            export(model, Prepared(network), table, None, {}, "", "onnxruntime")


@pytest.mark.parametrize("case", ["Fourier time", "labels", "one layer, centred input"])
def test_a_unet_of_another_build_is_refused(table, case):
    model = model_of(CASES[case][0]())
    with pytest.raises(ConfigError, match="This UNet cannot be exported"):
        export(model, Prepared(model.network), table, None, {}, "", "onnxruntime")


def test_a_file_that_is_not_the_network_is_not_written(model, table, write):
    network = exported(model, model.network, table, write)
    torch.manual_seed(1)
    other = model_of(CASES["pixel"][0]())
    with pytest.raises(ConfigError, match="the file is not written"):
        require_close(model, other.network, network, table, None, "float32")
