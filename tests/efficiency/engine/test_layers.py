"""One layer in a file, under ONNX Runtime, beside the layer in torch."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from iec.efficiency.engine.graph import Graph, Value
from iec.efficiency.engine.integers import ConvLayers, MatMulLayers
from iec.efficiency.engine.layers import Layers
from iec.efficiency.engine.sessions import open_session
from iec.efficiency.quantization import PTQConfig
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.errors import ConfigError
from tests.efficiency.integer.test_layers import LAYERS, STEPS, quant_layer

FORMS = (MatMulLayers, ConvLayers)


def file_of(layer, form, shape):
    graph = Graph()
    return graph.model({"x": Value("x", shape)}, {"y": form(graph)(Value("x", shape), layer)}, {})


def run(data, x, step, runtime="onnxruntime"):
    return torch.from_numpy(open_session(data, ["y"], runtime, 1)({"x": x.numpy(), "step": np.array(step)})["y"])


def kinds(data, tmp_path):
    """Of the nodes that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "groups"])
def test_a_layer_equals_its_simulation_to_float32_sums(form, name):
    make, settings = LAYERS[name]
    layer = quant_layer(make(), **settings)
    x = torch.randn(2, 24, 9, 8)
    data = file_of(layer, form, (24, 9, 8))
    for step in (0, 1):
        with layer.context.reading(step), torch.no_grad():
            simulated = layer(x)
        assert float((run(data, x, step) - simulated).abs().max()) < 1e-5 * float(simulated.abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", [0, 1])
def test_zero_points_that_are_no_8_bit_numbers_are_exact(form, padding):
    layer = quant_layer(nn.Conv2d(24, 16, 3, padding=padding))
    layer.inputs[0].set_steps(torch.full((STEPS,), 0.02), torch.tensor([-20.0, 300.0, 5.0]), torch.ones(STEPS, dtype=torch.bool))
    data, x = file_of(layer, form, (24, 9, 8)), 4 * torch.randn(2, 24, 9, 8)
    for step in range(STEPS):
        with layer.context.reading(step), torch.no_grad():
            torch.testing.assert_close(run(data, x, step), layer(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_corrections_of_cachequant_are_in_the_file(form):
    layer = quant_layer(nn.Conv2d(24, 16, 3, padding=1), split=10)
    layer.set_correction(1 + 0.1 * torch.randn(STEPS, 16), torch.randn(STEPS, 16))
    data, x = file_of(layer, form, (24, 9, 8)), torch.randn(2, 24, 9, 8)
    for step in (0, 1):
        with layer.context.reading(step), torch.no_grad():
            torch.testing.assert_close(run(data, x, step), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_without_scales_gives_nan(form):
    layer = quant_layer(nn.Conv2d(24, 16, 3, padding=1))
    assert bool(run(file_of(layer, form, (24, 9, 8)), torch.randn(2, 24, 9, 8), 2).isnan().all())


@pytest.mark.parametrize("name", ["padded", "strided", "split", "w4", "symmetric", "linear"])
def test_onnxruntime_runs_its_form_on_integers(tmp_path, name):
    """Every product is one node of 8-bit integers, and no float one is left."""
    make, settings = LAYERS[name]
    layer = quant_layer(make(), **settings)
    found = kinds(file_of(layer, MatMulLayers, (24, 9, 8)), tmp_path)
    assert found.count("MatMulIntegerToFloat") == len(layer.parts)
    assert not {"Conv", "MatMul", "FusedMatMul", "Gemm"} & set(found)


@pytest.mark.parametrize("name", ["padded", "split", "linear"])
def test_openvino_runs_its_form_on_integers(name):
    openvino = pytest.importorskip("openvino")
    make, settings = LAYERS[name]
    layer = quant_layer(make(), **settings)
    data, x = file_of(layer, ConvLayers, (24, 9, 8)), torch.randn(2, 24, 9, 8)
    model = openvino.Core().read_model(data)
    model.reshape({"x": [2, 24, 9, 8]})
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    operations = [(operation, operation.get_rt_info()) for operation in compiled.get_runtime_model().get_ops()]
    products = [
        about["runtimePrecision"].astype(str)
        for operation, about in operations
        if about["layerType"].astype(str).startswith(("Convolution", "FullyConnected", "MatMul"))
        and 16 in list(operation.get_output_shape(0))  # not the sum of the codes, which has one channel
    ]
    assert products == ["u8"] * len(layer.parts)
    with layer.context.reading(1), torch.no_grad():
        simulated = layer(x)
    assert float((run(data, x, 1, "openvino") - simulated).norm() / simulated.norm()) < 2e-3


def test_operands_of_attention_are_on_their_grid():
    context = StepContext(2)
    quantizer, x = ActivationQuantizer("q", 8, PTQConfig(scale_rule="max"), context), torch.randn(2, 5, 7)
    for step in (0, 1):
        with context.calibrating(step):
            quantizer((1 + step) * x)
    graph = Graph()
    data = graph.model({"x": Value("x", (5, 7))}, {"y": Value(Layers(graph).on_grid("x", quantizer), (5, 7))}, {})
    for step in (0, 1):
        with context.reading(step):
            assert torch.equal(run(data, 2 * x, step), quantizer(2 * x))


def test_what_has_no_form_is_refused():
    for form in FORMS:
        with pytest.raises(ConfigError, match="layer has 4 groups"):
            file_of(quant_layer(LAYERS["groups"][0]()), form, (24, 9, 8))
    layer = quant_layer(nn.Linear(8, 16))
    layer.set_weight_scales(torch.full((1, 16), 0.01), torch.full((1, 16), -300.0))
    with pytest.raises(ConfigError, match="weight_symmetric=true, or --engine openvino"):
        file_of(layer, MatMulLayers, (24, 9, 8))
    assert file_of(layer, ConvLayers, (24, 9, 8))
