"""A diffusers UNet, float or quantized, as nodes of an ONNX graph: its stages one after another, as feature caching runs them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iec.efficiency.caching.structure import Stage, structure_of
from iec.efficiency.engine.graph import Graph, Value
from iec.efficiency.engine.layers import Layers
from iec.efficiency.quantization.attention import QuantAttnProcessor

PerStep = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Of a function of the time embedding [1, width] the results of all steps, [T, ..]."""


class UNetWriter:
    """Writes a UNet with ``layers``. What depends on the step alone, the whole time embedding, is computed now: it becomes tables.

    unet: one that `require_exportable` lets pass. cond: the graph's input, None without.
    """

    def __init__(self, graph: Graph, layers: Layers, unet: Any, per_step: PerStep, cond: Value | None) -> None:
        self.graph, self.layers, self.unet, self.per_step, self.cond = graph, layers, unet, per_step, cond
        self.structure = structure_of(unet)

    def full(self, x: Value, cut: int | None) -> tuple[Value, Value | None]:
        """eps, and the feature at cut number ``cut``."""
        skips = self._down(x, len(self.structure.down))
        h = self._mid(skips[-1])
        if cut is None:
            return self._output(self._up(h, skips, 0, len(self.structure.up))), None
        start = len(self.structure.up) - 1 - cut
        feature = self._up(h, skips, 0, start)
        return self._output(self._up(feature, skips, start, len(self.structure.up))), feature

    def cached(self, x: Value, feature: Value, cut: int) -> Value:
        """eps from a feature of an earlier call."""
        skips = self._down(x, cut + 1)
        return self._output(self._up(feature, skips, len(self.structure.up) - 1 - cut, len(self.structure.up)))

    def _down(self, h: Value, stages: int) -> list[Value]:
        skips = []
        for stage in self.structure.down[:stages]:
            h = self._stage(stage, h)
            skips.append(h)
        return skips

    def _up(self, h: Value, skips: list[Value], start: int, stop: int) -> Value:
        """Takes the skips off the list."""
        for stage in self.structure.up[start:stop]:
            skip = skips.pop()
            joined = self.graph.op("Concat", h.name, skip.name, axis=1)
            h = Value(joined, (h.shape[0] + skip.shape[0], *h.shape[1:]))
            h = self._stage(stage, h, skips[-1].shape[1:] if skips else None)
        return h

    def _mid(self, h: Value) -> Value:
        mid: Any = self.structure.mid
        if mid is None:
            return h
        h = self._module(mid.resnets[0], h)
        for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
            h = self._module(resnet, h if attention is None else self._module(attention, h))
        return h

    def _output(self, h: Value) -> Value:
        if self.unet.conv_norm_out is not None:
            h = self._silu(self._group_norm(h, self.unet.conv_norm_out))
        return self.layers(h, self.unet.conv_out)

    def _stage(self, stage: Stage, h: Value, size: tuple[int, ...] | None = None) -> Value:
        for _, module in stage.parts:
            h = self._module(module, h, size)
        return h

    def _module(self, module: Any, h: Value, size: tuple[int, ...] | None = None) -> Value:
        from diffusers.models.attention_processor import Attention
        from diffusers.models.downsampling import Downsample2D
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel
        from diffusers.models.upsampling import Upsample2D

        if isinstance(module, ResnetBlock2D):
            return self._resnet(module, h)
        if isinstance(module, Transformer2DModel):
            return self._transformer(module, h)
        if isinstance(module, Attention):
            return self._add(self._from_tokens(self._attend(module, self._tokens(h), None), h.shape), h)
        if isinstance(module, Upsample2D):
            return self._upsample(module, h, size)
        return self._downsample(module, h) if isinstance(module, Downsample2D) else self.layers(h, module)

    def _resnet(self, block: Any, x: Value) -> Value:
        h = self._silu(self._group_norm(x, block.norm1))
        if block.upsample is not None:
            x, h = (self._upsample(block.upsample, v, None) for v in (x, h))
        elif block.downsample is not None:
            x, h = (self._downsample(block.downsample, v) for v in (x, h))
        h = self.layers(h, block.conv1)
        table = self.per_step(lambda emb: block.time_emb_proj(F.silu(emb))[..., None, None])  # T x 1 x C x 1 x 1
        if block.time_embedding_norm == "default":
            h = self._group_norm(self._with(h, "Add", self.graph.at_step(table)), block.norm2)
        else:
            scale, shift = table.chunk(2, dim=2)
            h = self._with(self._group_norm(h, block.norm2), "Mul", self.graph.at_step(1 + scale))
            h = self._with(h, "Add", self.graph.at_step(shift))
        h = self.layers(self._silu(h), block.conv2)
        h = self._add(h, x if block.conv_shortcut is None else self.layers(x, block.conv_shortcut))
        factor = block.output_scale_factor
        return h if factor == 1 else self._with(h, "Div", self.graph.constant(factor))

    def _transformer(self, module: Any, x: Value) -> Value:
        h = self._group_norm(x, module.norm)
        linear = module.use_linear_projection
        h = self.layers(self._tokens(h), module.proj_in) if linear else self._tokens(self.layers(h, module.proj_in))
        for block in module.transformer_blocks:
            h = self._add(self._attend(block.attn1, self._layer_norm(h, block.norm1), None), h)
            if block.attn2 is not None:
                h = self._add(self._attend(block.attn2, self._layer_norm(h, block.norm2), self.cond), h)
            h = self._add(self._feed_forward(block.ff, self._layer_norm(h, block.norm3)), h)
        shape = (h.shape[-1], *x.shape[1:])
        if linear:
            return self._add(self._from_tokens(self.layers(h, module.proj_out), x.shape), x)
        return self._add(self.layers(self._from_tokens(h, shape), module.proj_out), x)

    def _feed_forward(self, ff: Any, x: Value) -> Value:
        """x gelu(gate) of a GEGLU, then a linear layer."""
        graph, h = self.graph, self.layers(x, ff.net[0].proj)
        half = h.shape[-1] // 2
        value, gate = graph.ops("Split", 2, h.name, graph.constant([half, half], np.int64), axis=-1)
        return self.layers(Value(graph.op("Mul", value, graph.op("Gelu", gate)), (*h.shape[:-1], half)), ff.net[2])

    def _attend(self, attention: Any, x: Value, context: Value | None) -> Value:
        """Tokens [B, N, C] of tokens: softmax(q k^T scale) v, and the projections."""
        graph, heads = self.graph, attention.heads
        if attention.group_norm is not None:
            x = self._group_norm(x, attention.group_norm, last=True)
        other = x if context is None else context
        q, k, v = (self.layers(*pair) for pair in ((x, attention.to_q), (other, attention.to_k), (other, attention.to_v)))

        def split(value: Value, last: list[int]) -> str:
            tokens, width = value.shape
            rows = graph.op("Reshape", value.name, graph.constant([0, tokens, heads, width // heads], np.int64))
            return graph.op("Transpose", rows, perm=last)

        names = {"query": split(q, [0, 2, 1, 3]), "key": split(k, [0, 2, 3, 1]), "value": split(v, [0, 2, 1, 3])}
        names = {name: self._operand(attention, name, value) for name, value in names.items()}
        scores = graph.op("Mul", graph.op("MatMul", names["query"], names["key"]), graph.constant(attention.scale))
        weights = self._operand(attention, "softmax", graph.op("Softmax", scores, axis=-1))
        y = graph.op("Transpose", graph.op("MatMul", weights, names["value"]), perm=[0, 2, 1, 3])
        y = graph.op("Reshape", y, graph.constant([0, *v_shape(q, v)], np.int64))
        return self.layers(Value(y, v_shape(q, v)), attention.to_out[0])

    def _operand(self, attention: Any, name: str, value: str) -> str:
        processor = attention.processor
        return self.layers.on_grid(value, getattr(processor, name)) if isinstance(processor, QuantAttnProcessor) else value

    def _group_norm(self, x: Value, norm: nn.GroupNorm, last: bool = False) -> Value:
        """last: the channels of x are its last dimension."""
        if last:
            return self._transposed(self._group_norm(self._transposed(x), norm))
        graph, groups = self.graph, norm.num_groups
        rows = graph.op("Reshape", x.name, graph.constant([0, groups, -1], np.int64))
        unit = (graph.constant(torch.ones(groups)), graph.constant(torch.zeros(groups)))
        normed = graph.op("InstanceNormalization", rows, *unit, epsilon=norm.eps)
        h = graph.op("Reshape", normed, graph.constant([0, *x.shape], np.int64))
        ones = (1,) * (len(x.shape) - 1)
        weight, bias = (graph.constant(v.view(-1, *ones)) for v in (norm.weight, norm.bias))
        return Value(graph.op("Add", graph.op("Mul", h, weight), bias), x.shape)

    def _layer_norm(self, x: Value, norm: nn.LayerNorm) -> Value:
        operands = map(self.graph.constant, (norm.weight, norm.bias))
        return Value(self.graph.op("LayerNormalization", x.name, *operands, epsilon=norm.eps), x.shape)

    def _upsample(self, module: Any, x: Value, size: tuple[int, ...] | None) -> Value:
        """Nearest, to ``size`` or twice the size; then the convolution, if it has one."""
        channels, *old = x.shape
        new = size or tuple(2 * n for n in old)
        scales = self.graph.constant([1, 1, *(b / a for a, b in zip(old, new, strict=True))])
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        h = Value(self.graph.op("Resize", x.name, "", scales, **modes), (channels, *new))
        return self.layers(h, module.conv) if module.use_conv else h

    def _downsample(self, module: Any, x: Value) -> Value:
        if not module.use_conv:
            channels, *size = x.shape
            pooled = self.graph.op("AveragePool", x.name, kernel_shape=[2, 2], strides=[2, 2])
            return Value(pooled, (channels, *(n // 2 for n in size)))
        if module.padding == 0:  # below and right
            pads = self.graph.constant([0, 0, 0, 0, 0, 0, 1, 1], np.int64)
            x = Value(self.graph.op("Pad", x.name, pads), (x.shape[0], *(n + 1 for n in x.shape[1:])))
        return self.layers(x, module.conv)

    def _silu(self, x: Value) -> Value:
        return Value(self.graph.op("Mul", x.name, self.graph.op("Sigmoid", x.name)), x.shape)

    def _add(self, a: Value, b: Value) -> Value:
        return Value(self.graph.op("Add", a.name, b.name), a.shape)

    def _with(self, x: Value, kind: str, operand: str) -> Value:
        return Value(self.graph.op(kind, x.name, operand), x.shape)

    def _tokens(self, x: Value) -> Value:
        """[B, H W, C] of a map."""
        channels, high, wide = x.shape
        flat = self.graph.op("Reshape", x.name, self.graph.constant([0, channels, high * wide], np.int64))
        return self._transposed(Value(flat, (channels, high * wide)))

    def _from_tokens(self, x: Value, shape: tuple[int, ...]) -> Value:
        return Value(self.graph.op("Reshape", self._transposed(x).name, self.graph.constant([0, *shape], np.int64)), shape)

    def _transposed(self, x: Value) -> Value:
        return Value(self.graph.op("Transpose", x.name, perm=[0, 2, 1]), (x.shape[1], x.shape[0]))


def v_shape(q: Value, v: Value) -> tuple[int, int]:
    """Of attention's output: the tokens of q, the width of v."""
    return q.shape[0], v.shape[1]
