"""A quantized convolution or linear layer on integers."""

import torch
from torch import Tensor, nn

from iec.efficiency.integer.products import Geometry, Product, window_sums
from iec.efficiency.integer.weights import IntegerWeight
from iec.efficiency.quantization.layers import QuantLayer, SealedLayer
from iec.efficiency.quantization.steps import ActivationQuantizer, Bound


class IntegerLayer(SealedLayer):
    """What a calibrated `QuantLayer` computes, from integers.

    With the input x = (q - z) delta at this step and the weight W = (w + offset) delta_w (`IntegerWeight`), for each part of a
    split input, the first part times CacheQuant's alpha,

        y = sum over parts of  alpha delta delta_w (sum (q - z) w + offset sum (q - z)) + bias + beta.

    The sums are exact; it differs from the simulation by the rounding of float32 sums. The layer keeps 8-bit weights, the
    activation quantizers with their scales, and vectors; no float weight. Built on the device that it runs on.
    """

    def __init__(self, layer: QuantLayer, product: type[Product]) -> None:
        super().__init__()
        self.name, self.context, self.parts, self.inputs = layer.name, layer.context, layer.parts, layer.inputs
        inner = layer.layer
        self.geometry = Geometry.of(inner) if isinstance(inner, nn.Conv2d) else None
        k = layer.weight_codes()
        weights = [IntegerWeight.of(k[:, part], delta) for part, delta in zip(self.parts, layer.weight_delta, strict=True)]
        self.products = [product(weight.codes, self.geometry) for weight in weights]
        self.offsets = [None if weight.offset is None else weight.offset.float() for weight in weights]
        self.deltas = [weight.delta for weight in weights]
        self.shift = None if inner.bias is None else inner.bias.detach().float()
        self.alpha, self.beta = layer.alpha, layer.beta

    def forward(self, x: Tensor) -> Tensor:
        grids = [quantizer.grid() for quantizer in self._quantizers()]
        halves = [x] if len(self.parts) == 1 else [x[:, part] for part in self.parts]
        return self.combine([codes(half, *grid) for half, grid in zip(halves, grids, strict=True)]).to(x.dtype)

    def combine(self, inputs: list[Tensor]) -> Tensor:
        """y, float32, of the codes q of each part."""
        y, bias = None, self._bias()
        for k, (q, quantizer) in enumerate(zip(inputs, self._quantizers(), strict=True)):
            delta, low, _ = quantizer.grid()
            z, scale, offset = -int(low), delta * self.deltas[k], self.offsets[k]
            if k == 0 and self.alpha is not None:
                scale = scale * self.alpha[self.context.step(self.name)]
            y, bias = self.products[k](q, z, scale, bias, y), None
            if offset is not None:
                y = self._add_offset(y, window_sums(q, z, self.products[k].shape, self.geometry), offset * scale)
        assert y is not None  # a layer has a part
        return y

    def _quantizers(self) -> list[ActivationQuantizer]:
        return list(self.inputs)  # type: ignore[arg-type]  # a ModuleList knows no element type

    def _bias(self) -> Tensor | None:
        if self.beta is None:
            return self.shift
        beta = self.beta[self.context.step(self.name)]
        return beta if self.shift is None else self.shift + beta

    def _add_offset(self, y: Tensor, sums: Tensor, factor: Tensor) -> Tensor:
        if self.geometry is None:
            return y.addcmul_(sums.to(y.dtype), factor)
        if sums.shape[1] > 1:  # a group's sum is that of its output channels
            sums = sums.repeat_interleave(y.shape[1] // sums.shape[1], 1)
        return y.addcmul_(sums.to(y.dtype), factor.view(-1, 1, 1))


def codes(x: Tensor, delta: Tensor, low: Bound, high: Bound) -> Tensor:
    """q = clamp(round(x / delta), low, high) - low, uint8; an image's channels-last.

    It is the simulation's formula: a division, and halves to even. A multiplication by 1 / delta moves values over the borders.
    """
    q = torch.div(x.float(), delta).round_().clamp_(low, high).sub_(low).to(torch.uint8)  # type: ignore[arg-type]
    return q.contiguous(memory_format=torch.channels_last) if q.ndim == 4 else q.contiguous()
