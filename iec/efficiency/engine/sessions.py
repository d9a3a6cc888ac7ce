"""Engines that run a file: a function of named arrays, on one thread or as many as the cell has."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from iec.efficiency.engine.graph import Graph, Value
from iec.errors import ArtifactError, ConfigError, DeviceError
from iec.io.environment import instruction_sets

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]
"""Outputs by name."""
RUNTIMES = ("onnxruntime", "openvino")
LARGEST_CODE, LARGEST_WEIGHT = 255, 127


def require_runtime(runtime: str, setting: str = "efficiency.runtime=") -> None:
    """Raises `ConfigError` for an unknown engine, or one that is not installed. setting: what another is chosen by."""
    if runtime not in RUNTIMES:
        raise ConfigError(f"Unknown engine {setting}{runtime}; choose {', '.join(RUNTIMES)}.")
    if find_spec(runtime) is None:
        raise ConfigError(f"{runtime} is not installed: pip install {runtime}. Or use {setting}onnxruntime, which is a dependency.")


def open_session(data: bytes, outputs: Sequence[str], runtime: str, threads: int) -> Run:
    """The network of a file that `read_file` has checked.

    outputs: their names, in order. threads: over which an operation is spread. Raises `ArtifactError` for a file that the engine
    does not take.
    """
    return (_ONNXRuntime if runtime == "onnxruntime" else _OpenVINO)(data, outputs, threads)


class _ONNXRuntime:
    def __init__(self, data: bytes, outputs: Sequence[str], threads: int) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as raised

        self._errors = (
            *(raised.Fail, raised.InvalidArgument, raised.InvalidGraph, raised.InvalidProtobuf),
            *(raised.NotImplemented, raised.RuntimeException),
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        self._outputs = list(outputs)
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise _refused("ONNX Runtime", error) from error

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        except self._errors as error:
            raise _refused("ONNX Runtime", error) from error


class _OpenVINO:
    """Compiled once for each batch size: a network of fixed shapes is faster."""

    def __init__(self, data: bytes, outputs: Sequence[str], threads: int) -> None:
        import openvino

        self._core, self._data, self._outputs = openvino.Core(), data, outputs
        self._compiled: dict[int, Any] = {}
        self._settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        batch = len(inputs["x"])
        try:
            if batch not in self._compiled:
                self._compiled[batch] = self._compile({name: list(value.shape) for name, value in inputs.items()})
            request = self._compiled[batch]
            taken = {port.any_name for port in request.model_inputs}  # without those that nothing is computed from
            request.infer({name: value for name, value in inputs.items() if name in taken})
        except RuntimeError as error:
            raise _refused("OpenVINO", error) from error
        return {name: request.get_output_tensor(k).data.copy() for k, name in enumerate(self._outputs)}

    def _compile(self, shapes: dict[str, list[int]]) -> Any:
        model = self._core.read_model(self._data)
        taken = {port.any_name for port in model.inputs}
        model.reshape({name: shape for name, shape in shapes.items() if name in taken})
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()


@cache
def require_exact_sums(runtime: str) -> None:
    """Raises `DeviceError` on a CPU where the engine does not sum 8-bit products exactly: before VNNI, two products are added in 16
    bits and cut off there. It is tried, once, on the largest numbers.
    """
    terms, graph = 64, Graph()
    unit = (graph.constant(1), graph.constant(0, np.uint8))
    q = graph.op("DequantizeLinear", graph.op("QuantizeLinear", "x", *unit), *unit)
    weight = graph.constant(np.full((terms, 8), LARGEST_WEIGHT), np.int8)
    w = graph.op("DequantizeLinear", weight, graph.constant(np.ones(8)), axis=1)
    data = graph.model({"x": Value("x", (terms,))}, {"y": Value(graph.op("MatMul", q, w), (8,))}, {})
    x = np.full((4, terms), LARGEST_CODE, np.float32)
    sums = open_session(data, ["y"], runtime, 1)({"x": x, "step": np.array(0)})["y"]
    if not (sums == terms * LARGEST_CODE * LARGEST_WEIGHT).all():
        raise DeviceError(
            f"{runtime} adds products of 8-bit integers in 16 bits on this CPU and cuts the sums off (instruction sets: "
            f"{', '.join(instruction_sets()) or 'none known'}; VNNI or AMX is needed). Export efficiency=none, or use the cell "
            "that was exported."
        )


def _refused(engine: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"{engine} does not take the file: {str(error).strip()[:300]}. Export the network again.")
