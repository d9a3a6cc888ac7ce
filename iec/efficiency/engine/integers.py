"""Quantized convolutions and linear layers, in the forms that two engines run on 8-bit integers."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iec.efficiency.engine.graph import Graph, Value
from iec.efficiency.engine.layers import Layers, output_shape, scales, window
from iec.efficiency.integer.network import BITS
from iec.efficiency.integer.weights import IntegerWeight
from iec.efficiency.quantization.layers import QuantLayer
from iec.efficiency.quantization.quantizer import levels
from iec.efficiency.quantization.steps import ActivationQuantizer
from iec.errors import ConfigError


class IntegerLayers(Layers, ABC):
    """y = sum over parts of alpha delta delta_w sum (q - z) (w + offset) + bias + beta, as `iec.efficiency.integer` has it."""

    def __call__(self, x: Value, layer: Any) -> Value:
        """What the `QuantLayer` ``layer`` gives for x."""
        graph, inner, conv = self.graph, layer.layer, isinstance(layer.layer, nn.Conv2d)
        if conv and inner.groups != 1:
            raise ConfigError(
                f"{layer.name} has {inner.groups} groups, and cannot be exported on integers. Export efficiency=none."
            )
        k, total = layer.weight_codes(), None
        for n, (part, quantizer) in enumerate(zip(layer.parts, layer.inputs, strict=True)):
            own = x if layer.split is None else self._channels_of(x, part)
            weight = IntegerWeight.of(k[:, part], layer.weight_delta[n])
            y = self.product(own, layer, weight, quantizer)
            if n == 0 and layer.alpha is not None:
                y = graph.op("Mul", y, graph.at_step(self.channels(layer.alpha, conv)))
            total = y if total is None else graph.op("Add", total, y)
        assert total is not None  # a layer has a part
        return Value(self.end(self._with_bias(total, layer, conv), conv), output_shape(x, inner))

    def _channels_of(self, x: Value, part: slice) -> Value:
        ends = (self.graph.constant([end], np.int64) for end in (part.start, part.stop, 1))
        return Value(self.graph.op("Slice", x.name, *ends), (part.stop - part.start, *x.shape[1:]))

    def _with_bias(self, y: str, layer: QuantLayer, conv: bool) -> str:
        bias = layer.layer.bias
        if layer.beta is None:
            return y if bias is None else self.graph.op("Add", y, self.graph.constant(self.channels(bias, conv)))
        shift = layer.beta if bias is None else layer.beta + bias
        return self.graph.op("Add", y, self.graph.at_step(self.channels(shift, conv)))

    @abstractmethod
    def product(self, x: Value, layer: QuantLayer, weight: IntegerWeight, quantizer: ActivationQuantizer) -> str:
        """delta delta_w sum (q - z) (w + offset) of one part."""

    @abstractmethod
    def channels(self, table: Tensor, conv: bool) -> Tensor:
        """[.., O] so that it goes with what `product` gives."""

    @abstractmethod
    def end(self, y: str, conv: bool) -> str:
        """The layer's output of what `product` gives."""

    def shift(self, y: str, x: Value, layer: QuantLayer, weight: IntegerWeight, z: str) -> str:
        """y - z taps, taps the sum of the weights that lie inside the input: of codes that were padded with 0 and not with z."""
        values = weight.codes.double() if weight.offset is None else weight.codes + _column(weight.offset.double(), weight.codes)
        values, inner = values * _column(weight.delta.double(), values), layer.layer
        if isinstance(inner, nn.Conv2d):
            ones = values.new_ones(1, *x.shape)
            taps = self.maps(F.conv2d(ones, values, None, inner.stride, inner.padding, inner.dilation)[0])
        else:
            taps = values.sum(1)
        return self.graph.op("Sub", y, self.graph.op("Mul", z, self.graph.constant(taps.float())))

    @abstractmethod
    def maps(self, taps: Tensor) -> Tensor:
        """[O, H, W] so that it goes with what `product` gives."""


class MatMulLayers(IntegerLayers):
    """For ONNX Runtime: a convolution as a matrix product of patches, between QuantizeLinear and DequantizeLinear.

    On a CPU it has no fast convolution of 8-bit integers with a float output, but a matrix product: two DequantizeLinear and MatMul
    become one node, MatMulIntegerToFloat, whose sums are exact.
    """

    def product(self, x: Value, layer: QuantLayer, weight: IntegerWeight, quantizer: ActivationQuantizer) -> str:
        graph, inner = self.graph, layer.layer
        offset = torch.zeros(len(weight.codes)) if weight.offset is None else weight.offset
        if bool((offset > 128).any() or (offset < -127).any()):
            raise ConfigError(
                f"{layer.name} has a weight whose zero point is no 8-bit number, and cannot be exported for ONNX Runtime. Use "
                "efficiency.weight_symmetric=true, or --engine openvino."
            )
        table, z = scales(quantizer)
        delta, inside = graph.at_step(table), bool(((z >= 0) & (z < levels(BITS))).all())
        if inside:
            zero = graph.at_step(z, np.uint8)
            q = graph.op("QuantizeLinear", x.name, delta, zero)
            if quantizer.bits < BITS:
                q = graph.op("Clip", q, graph.constant(0, np.uint8), graph.constant(levels(quantizer.bits) - 1, np.uint8))
        else:
            zero = graph.constant(0, np.uint8)
            q = graph.op("Cast", codes(graph, x.name, quantizer), to=onnx.TensorProto.UINT8)
        matrix = weight.codes
        if isinstance(inner, nn.Conv2d):
            q = self._patches(graph.op("Transpose", q, perm=[0, 2, 3, 1]), x, inner, zero)
            matrix = matrix.permute(2, 3, 1, 0).flatten(0, 2)  # kH kW I x O
        else:
            matrix = matrix.T
        operands = (graph.constant(matrix, np.int8), graph.constant(weight.delta), graph.constant(-offset, np.int8))
        y = graph.op(
            "MatMul",
            graph.op("DequantizeLinear", q, delta, zero),
            graph.op("DequantizeLinear", *operands, axis=1),
        )
        return y if inside else self.shift(y, x, layer, weight, graph.at_step(table * z))

    def channels(self, table: Tensor, conv: bool) -> Tensor:
        return table

    def maps(self, taps: Tensor) -> Tensor:
        return taps.permute(1, 2, 0)

    def end(self, y: str, conv: bool) -> str:
        return self.graph.op("Transpose", y, perm=[0, 3, 1, 2]) if conv else y

    def _patches(self, q: str, x: Value, conv: nn.Conv2d, zero: str) -> str:
        """[B, H', W', kH kW C] of codes [B, H, W, C]."""
        graph, (kernel, stride, dilation) = self.graph, (conv.kernel_size, conv.stride, conv.dilation)
        below, right = (int(p) for p in conv.padding)
        axes = graph.constant([1, 2], np.int64)
        if below or right:
            q = graph.op("Pad", q, graph.constant([below, right, below, right], np.int64), zero, axes)
        if kernel == (1, 1) and stride == (1, 1):
            return q
        _, high, wide = output_shape(x, conv)
        steps, taps = graph.constant(stride, np.int64), []
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                start = (i * dilation[0], j * dilation[1])
                stop = (start[0] + (high - 1) * stride[0] + 1, start[1] + (wide - 1) * stride[1] + 1)
                ends = (graph.constant(end, np.int64) for end in (start, stop))
                taps.append(graph.op("Slice", q, *ends, axes, steps))
        return taps[0] if len(taps) == 1 else graph.op("Concat", *taps, axis=3)


class ConvLayers(IntegerLayers):
    """For OpenVINO: a quantizer of the constant grid 0 .. 255 before each layer, which becomes a FakeQuantize.

    The grid of a step is outside of it: x / delta + z before, and delta (.. - z taps) after the layer. A layer whose weights have
    zero points would run in float: what these add is a multiple of the sum of the codes over the window, computed beside it.
    """

    def product(self, x: Value, layer: QuantLayer, weight: IntegerWeight, quantizer: ActivationQuantizer) -> str:
        graph, inner, conv = self.graph, layer.layer, isinstance(layer.layer, nn.Conv2d)
        table, z = scales(quantizer)
        unit = (graph.constant(1), graph.constant(0, np.uint8))
        q = graph.op("DequantizeLinear", graph.op("QuantizeLinear", codes(graph, x.name, quantizer), *unit), *unit)
        matrix = weight.codes if conv else weight.codes.T
        w = graph.op("DequantizeLinear", graph.constant(matrix, np.int8), graph.constant(weight.delta), axis=0 if conv else 1)
        y = graph.op("Conv", q, w, **window(inner)) if isinstance(inner, nn.Conv2d) else graph.op("MatMul", q, w)
        if weight.offset is not None:
            factor = graph.constant(self.channels(weight.offset * weight.delta, conv))
            y = graph.op("Add", y, graph.op("Mul", self._sums(q, inner), factor))
        return graph.op("Mul", self.shift(y, x, layer, weight, graph.at_step(z)), graph.at_step(table))

    def _sums(self, q: str, layer: nn.Module) -> str:
        """Of q over the window and the input channels, [B, 1, H', W'] or [.., 1]."""
        if not isinstance(layer, nn.Conv2d):
            return self.graph.op("ReduceSum", q, self.graph.constant([-1], np.int64))
        sums = self.graph.op("ReduceSum", q, self.graph.constant([1], np.int64))
        if layer.kernel_size == layer.stride == (1, 1):
            return sums
        return self.graph.op("Conv", sums, self.graph.constant(torch.ones(1, 1, *layer.kernel_size)), **window(layer))

    def channels(self, table: Tensor, conv: bool) -> Tensor:
        return table[..., None, None] if conv else table

    def maps(self, taps: Tensor) -> Tensor:
        return taps

    def end(self, y: str, conv: bool) -> str:
        return y


def codes(graph: Graph, x: str, quantizer: ActivationQuantizer) -> str:
    """q = clamp(round(x / delta) + z, 0, L - 1), whole numbers in float."""
    delta, z = scales(quantizer)
    q = graph.op("Add", graph.op("Round", graph.op("Div", x, graph.at_step(delta))), graph.at_step(z))
    return graph.op("Clip", q, graph.constant(0), graph.constant(levels(quantizer.bits) - 1))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
