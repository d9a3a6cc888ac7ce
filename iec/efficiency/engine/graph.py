"""An ONNX graph, written node by node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from iec.errors import ConfigError

OPSET, IR_VERSION = 21, 10
"""Of every file: 8-bit tables and per-channel dequantization have their meaning here. ONNX Runtime reads it from 1.18 on."""
LARGEST = 2**31 - 2**20
"""Bytes of the constants of a file, which has to stay below 2 GB."""
STEP = "step"
"""The input that tables are indexed by."""


@dataclass(frozen=True)
class Value:
    """A float tensor of the graph. shape: without the batch, which is free: (C, H, W) of a map, (N, C) of tokens."""

    name: str
    shape: tuple[int, ...]


class Graph:
    """Nodes and constants in the order in which they are added: the same calls make the same bytes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._tables: dict[str, str] = {}

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Name of a constant; equal ones are stored once."""
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, dtype=dtype)
        array = array.reshape(np.shape(value))  # ascontiguousarray makes a vector of a number
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; its name."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node; the names of its outputs."""
        name = f"{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names

    def at_step(self, table: Any, dtype: Any = np.float32) -> str:
        """The entry of ``table`` [T, ..] at the step of the call."""
        name = self.constant(table, dtype)
        if name not in self._tables:
            self._tables[name] = self.op("Gather", name, STEP, axis=0)
        return self._tables[name]

    def model(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value], metadata: Mapping[str, str]) -> bytes:
        """The file. inputs: name -> the value of that name, beside the step. outputs: name -> the value that it gives.

        Raises `ConfigError` for more than the 2 GB that a file can hold.
        """
        size = sum(len(tensor.raw_data) for tensor in self._initializers)
        if size > LARGEST:
            raise ConfigError(f"The weights take {size / 1e9:.1f} GB, and an ONNX file holds 2.1. Export a quantized network.")
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        graph = helper.make_graph(
            self.nodes,
            "network",
            [*(_signature(name, value.shape) for name, value in inputs.items()),
             helper.make_tensor_value_info(STEP, onnx.TensorProto.INT64, [])],
            [_signature(name, value.shape) for name, value in outputs.items()],
            self._initializers,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="iec")
        helper.set_model_props(model, dict(sorted(metadata.items())))
        return model.SerializeToString(deterministic=True)


def _signature(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])
