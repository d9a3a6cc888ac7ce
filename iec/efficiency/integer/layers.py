"""A quantized convolution or linear layer on integers."""

from typing import Protocol

import torch
from torch import Tensor, nn

from iec.efficiency.integer.codes import Codes, Geometry
from iec.efficiency.integer.passes import Passes
from iec.efficiency.integer.products import Product
from iec.efficiency.integer.weights import IntegerWeight, packed_shape
from iec.efficiency.quantization.layers import SealedLayer
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext


class Calibrated(Protocol):
    """What an `IntegerLayer` is made of: a calibrated `QuantLayer`, or what was stored of one. layer: of which the geometry and the
    bias are taken.
    """

    name: str
    context: StepContext
    parts: list[slice]
    inputs: nn.ModuleList
    split: int | None
    weight_bits: int
    weight_delta: Tensor
    alpha: Tensor | None
    beta: Tensor | None

    @property
    def layer(self) -> nn.Conv2d | nn.Linear: ...

    def weight_codes(self) -> Tensor:
        """k [O, I, ..], whole numbers: the weight is k delta."""


class IntegerLayer(SealedLayer):
    """What a calibrated `QuantLayer` computes, from integers.

    With the input x = (q - z) delta at this step and the weight W = (w + offset) delta_w (`IntegerWeight`), for each part of a
    split input, the first part times CacheQuant's alpha,

        y = sum over parts of  alpha delta delta_w (sum (q - z) w + offset sum (q - z)) + bias + beta.

    The sums are exact; it differs from the simulation by the rounding of float32 sums. The layer keeps 8-bit weights, the
    activation quantizers with their scales, and vectors; no float weight. Built on the device that it runs on.
    """

    def __init__(self, layer: Calibrated, product: type[Product], passes: Passes) -> None:
        super().__init__()
        self.name, self.context, self.parts, self.inputs = layer.name, layer.context, layer.parts, layer.inputs
        self.split, self.passes, inner = layer.split, passes, layer.layer
        self.keep_sizes(inner)
        self.geometry = Geometry.of(inner) if isinstance(inner, nn.Conv2d) else None
        k, self.weight_bits = layer.weight_codes(), layer.weight_bits
        weights = [IntegerWeight.of(k[:, part], delta) for part, delta in zip(self.parts, layer.weight_delta, strict=True)]
        self.products = [product(weight.codes, self.geometry) for weight in weights]
        self.offsets = [None if weight.offset is None else weight.offset.float() for weight in weights]
        self.deltas = [weight.delta for weight in weights]
        self.shift = None if inner.bias is None else inner.bias.detach().float()
        self.alpha, self.beta = layer.alpha, layer.beta

    @property
    def stored_bytes(self) -> int:
        """With the weight in 4 bits, or in 8 bits, and a float32 delta and an int32 z per channel and part."""
        count = sum(product.shape.numel() for product in self.products)
        weights = packed_shape(torch.Size([count]), self.weight_bits).numel()
        scales = 8 * sum(len(delta) for delta in self.deltas)
        return weights + scales + (0 if self.shift is None else self.shift.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x if self.geometry is None else x.permute(0, 2, 3, 1)  # B x H x W x C
        halves = [rows] if self.split is None else [rows[..., part] for part in self.parts]
        inputs = [self.passes.codes(half, quantizer.grid()) for half, quantizer in zip(halves, self._quantizers(), strict=True)]
        return self._output(inputs).to(x.dtype)

    def after_norm_and_silu(self, x: Tensor, add: Tensor | None, norm: nn.GroupNorm) -> Tensor:
        """Of silu(norm(x + add)) for x [B, C, H, W] and add [B, C]."""
        grids = [quantizer.grid() for quantizer in self._quantizers()]
        return self._output(self.passes.norm_silu_codes(x, add, norm, grids, self.split)).to(x.dtype)

    def _output(self, inputs: list[Codes]) -> Tensor:
        """y, float32."""
        y, bias = None, self._bias()
        for k, (codes, quantizer) in enumerate(zip(inputs, self._quantizers(), strict=True)):
            delta, low, _ = quantizer.grid()
            z, scale, offset = -int(low), delta * self.deltas[k], self.offsets[k]
            if k == 0 and self.alpha is not None:
                scale = scale * self.alpha[self.context.step(self.name)]
            q = codes.q if self.geometry is None else codes.q.permute(0, 3, 1, 2)
            y, bias = self.products[k](q, z, scale, bias, y), None
            if offset is not None:
                y = self.passes.add_offset(y, codes, z, self.products[k].shape, self.geometry, offset * scale)
        assert y is not None  # a layer has a part
        return y

    def _quantizers(self) -> list[ActivationQuantizer]:
        return list(self.inputs)  # type: ignore[arg-type]  # a ModuleList knows no element type

    def _bias(self) -> Tensor | None:
        if self.beta is None:
            return self.shift
        beta = self.beta[self.context.step(self.name)]
        return beta if self.shift is None else self.shift + beta
