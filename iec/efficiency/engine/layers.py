"""Convolutions, linear layers and the operands of attention as nodes of a graph."""

from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.engine.graph import Graph, Value
from iec.efficiency.quantization.quantizer import levels
from iec.efficiency.quantization.steps import ActivationQuantizer


class Layers:
    """Writes layers into ``graph``, in float."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __call__(self, x: Value, layer: Any) -> Value:
        """What the Conv2d or Linear ``layer`` gives for x."""
        graph, weight = self.graph, layer.weight
        if isinstance(layer, nn.Conv2d):
            operands = [weight] if layer.bias is None else [weight, layer.bias]
            y = graph.op("Conv", x.name, *map(graph.constant, operands), **window(layer))
        else:
            y = graph.op("MatMul", x.name, graph.constant(weight.T))
            y = y if layer.bias is None else graph.op("Add", y, graph.constant(layer.bias))
        return Value(y, output_shape(x, layer))

    def on_grid(self, x: str, quantizer: nn.Module) -> str:
        """An operand of attention on its grid, in float arithmetic; as it is where it is not quantized."""
        if not isinstance(quantizer, ActivationQuantizer):
            return x
        graph, (delta, z) = self.graph, scales(quantizer)
        steps = graph.op("Round", graph.op("Div", x, graph.at_step(delta)))
        low, high = graph.at_step(-z), graph.at_step(levels(quantizer.bits) - 1 - z)
        return graph.op("Mul", graph.op("Clip", steps, low, high), graph.at_step(delta))


def scales(quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """delta and z, [T]; NaN and 0 at a step that has none: the output then is NaN, too."""
    known = quantizer.calibrated
    return torch.where(known, quantizer.delta, torch.nan), torch.where(known, quantizer.zero_point.round(), 0.0)


def window(conv: nn.Conv2d) -> dict[str, Any]:
    """Attributes of a Conv node."""
    return {
        "kernel_shape": list(conv.kernel_size),
        "strides": list(conv.stride),
        "pads": [int(p) for p in conv.padding] * 2,
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }


def output_shape(x: Value, layer: nn.Module) -> tuple[int, ...]:
    """Of a Conv2d or Linear, without the batch."""
    if isinstance(layer, nn.Linear):
        return (*x.shape[:-1], layer.out_features)
    assert isinstance(layer, nn.Conv2d)
    padding = [int(p) for p in layer.padding]
    sizes = zip(x.shape[1:], layer.kernel_size, layer.stride, padding, layer.dilation, strict=True)
    return (layer.out_channels, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes))
