"""Convolutions and linear layers with fake-quantized weights and inputs."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iec.efficiency.quantization.config import OFF, PTQConfig
from iec.efficiency.quantization.quantizer import levels, search_scale
from iec.efficiency.quantization.rounding import LearnedRounding
from iec.efficiency.quantization.steps import ActivationQuantizer, Float32Scales, StepContext
from iec.errors import ConfigError


class NoWeightError(ConfigError, AttributeError):
    """Something that changes or copies weights (fused projections, an adapter) reached for those of a quantized layer."""


class SealedLayer(nn.Module):
    """A layer ``name`` whose weight and bias are for itself: reaching for them raises `NoWeightError`."""

    name: str

    @property
    def stored_bytes(self) -> int:
        """Of the weight with its scales, and of the bias, where they are kept on disk."""
        raise NotImplementedError

    def keep_sizes(self, layer: nn.Module) -> None:
        """Those of the layer in whose place this stands: Stable Diffusion XL's pipeline reads them."""
        for name in ("in_features", "out_features", "in_channels", "out_channels"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            raise NoWeightError(
                f"{self.name} is quantized and its {name} cannot be used from outside (fused projections, adapters, merged weights "
                "..). Take the quantization off (iec.remove(pipe)), change the weights, and quantize again."
            )
        return super().__getattr__(name)


class QuantLayer(SealedLayer, Float32Scales):
    """A Conv2d or Linear computed as layer(xq, Wq) + bias; the bias stays float.

    Wq: one (delta, z) per output channel, found once from the weights alone. xq: one (delta, z) per sampling step. With ``split``,
    input channels [:split] and [split:] (h and the skip of an up block's concatenation) are two parts with their own scales in
    both. The parts are put together again before the one convolution: it sums over all input channels anyway.

    With `set_correction`, step i gives alpha_i (Wq h) + beta_i for the half h: a factor on the output of one part is a factor on
    that part's slice of the weight (CacheQuant's correction of the quantization error).

    weight_delta, weight_zero_point: [parts, O]. During calibration the float weight is used.
    rounded_up: bool, the weight's shape: w / delta is rounded up there and down elsewhere; None rounds to nearest.
    learning: the rounding that `reconstruct` is learning, in place of all of these, else None.
    """

    SCALES = ("weight_delta", "weight_zero_point", "alpha", "beta")

    weight_delta: Tensor
    weight_zero_point: Tensor
    quantized_weight: Tensor
    alpha: Tensor | None
    beta: Tensor | None
    rounded_up: Tensor | None

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, name: str, config: PTQConfig, context: StepContext, split: int | None = None
    ) -> None:
        super().__init__()
        self.layer, self.name, self.context, self.split = layer, name, context, split
        self.keep_sizes(layer)
        self.weight_bits, self.activation_bits = config.bits_of(name)
        self.parts = parts_of(layer, split)
        self.inputs = input_quantizers(layer, name, config, context, self.parts)
        found = [self._search(layer.weight[:, part], config) for part in self.parts]
        self.register_buffer("weight_delta", torch.stack([delta for delta, _ in found]))
        self.register_buffer("weight_zero_point", torch.stack([zero_point for _, zero_point in found]))
        self.register_buffer("quantized_weight", torch.empty(0), persistent=False)
        self.register_buffer("alpha", None)
        self.register_buffer("beta", None)
        self.register_buffer("rounded_up", None)
        self.learning: LearnedRounding | None = None
        self.refresh()
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())

    @property
    def stored_bytes(self) -> int:
        """With the weight at its bits, a float32 delta and an int32 z per channel and part."""
        weight, bias = self.layer.weight, 0 if self.layer.bias is None else self.layer.bias.nbytes
        if self.weight_bits == OFF:
            return weight.nbytes + bias
        return (weight.numel() * self.weight_bits + 7) // 8 + self.weight_delta.numel() * 8 + bias

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.operands()
        x = self._quantize_input(x)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, weight, bias)
        return F.linear(x, weight, bias)

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """The weight [O, I, ...] and bias [O] of this call."""
        if self.context.searching:
            return self.layer.weight, self.layer.bias
        weight, bias = self.quantized_weight, self.layer.bias
        if self.learning is not None:
            return self.learning.weight().to(weight.dtype), bias
        if self.alpha is None or self.beta is None:
            return weight, bias
        alpha, beta = (self.context.entry(table, self.name) for table in (self.alpha, self.beta))
        factor, shift = alpha.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)), beta.to(weight.dtype)
        weight = torch.cat([factor * weight[:, self.parts[0]], weight[:, self.parts[1]]], dim=1)
        return weight, shift if bias is None else bias + shift

    def set_correction(self, alpha: Tensor, beta: Tensor) -> None:
        """Correct the output of the first half with alpha, beta [T, O]. Raises `ConfigError` if the layer is not split."""
        shape = (self.context.num_steps, len(self.layer.weight))
        if self.split is None or alpha.shape != shape or beta.shape != shape:
            raise ConfigError(
                f"{self.name} takes a correction of the shape {list(shape)} on the first half of a split input, not "
                f"{list(alpha.shape)}; its split is {self.split}. Use efficiency.split_skips=true, and tables of the same steps."
            )
        device = self.layer.weight.device
        self.alpha, self.beta = alpha.to(device, torch.float32), beta.to(device, torch.float32)

    @torch.no_grad()
    def refresh(self) -> None:
        """Quantize the weight with the current scales and rounding."""
        weight = self.layer.weight
        if self.weight_bits == OFF:
            self.quantized_weight = weight.detach()
            return
        self.quantized_weight = (self.weight_codes() * self.weight_grid()[0]).to(weight.dtype)

    @torch.no_grad()
    def weight_codes(self) -> Tensor:
        """k [O, I, ..] of the weight's values k delta: whole numbers in float32."""
        delta, low, high = self.weight_grid()
        steps = self.layer.weight.float() / delta
        steps = steps.round() if self.rounded_up is None else steps.floor() + self.rounded_up
        return torch.minimum(torch.maximum(steps, low), high)

    def weight_grid(self) -> tuple[Tensor, Tensor, Tensor]:
        """delta, low and high, [O, 1 or I, ..]: the weight's values are k delta, k = low .. high."""
        shape = (-1, 1) + (1,) * (self.layer.weight.ndim - 2)
        widths = [1] if len(self.parts) == 1 else [part.stop - part.start for part in self.parts]

        def spread(table: Tensor) -> Tensor:
            return torch.cat([half.view(shape).repeat_interleave(n, 1) for half, n in zip(table, widths, strict=True)], dim=1)

        z = spread(self.weight_zero_point).round()
        return spread(self.weight_delta), -z, levels(self.weight_bits) - 1 - z

    @torch.no_grad()
    def rounding(self) -> Tensor:
        """`rounded_up`, or the same for rounding to nearest."""
        if self.rounded_up is not None:
            return self.rounded_up
        steps = self.layer.weight.float() / self.weight_grid()[0]
        return steps.round() > steps.floor()

    def set_rounding(self, rounded_up: Tensor | None) -> None:
        """Round the weight so, bool of its shape, or to nearest, and quantize it."""
        self.rounded_up = None if rounded_up is None else rounded_up.to(self.layer.weight.device)
        self.refresh()

    def set_weight_scales(self, delta: Tensor, zero_point: Tensor) -> None:
        """Replace the scales [parts, O] and quantize the weight with them."""
        self.weight_delta.copy_(delta)
        self.weight_zero_point.copy_(zero_point)
        self.refresh()

    def _search(self, weight: Tensor, config: PTQConfig) -> tuple[Tensor, Tensor]:
        if self.weight_bits == OFF:
            return torch.ones(len(weight), device=weight.device), torch.zeros(len(weight), device=weight.device)
        values = torch.cat([weight, -weight], dim=1) if config.weight_symmetric else weight
        delta, zero_point = search_scale(
            values, self.weight_bits, config.scale_rule, per_channel=True, percentile=config.percentile
        )
        return delta, torch.full_like(zero_point, levels(self.weight_bits) // 2) if config.weight_symmetric else zero_point

    def _quantize_input(self, x: Tensor) -> Tensor:
        if not self.inputs:
            return x
        if len(self.parts) == 1:
            return self.inputs[0](x)
        if self.context.steps is not None or self.context.index is not None:  # ``out`` has no gradients, and is not for graphs
            return torch.cat([quantizer(x[:, part]) for quantizer, part in zip(self.inputs, self.parts, strict=True)], dim=1)
        out = torch.empty_like(x, dtype=torch.float32)
        for quantizer, part in zip(self.inputs, self.parts, strict=True):
            quantizer(x[:, part], out=out[:, part])
        return out.to(x.dtype)


def parts_of(layer: nn.Conv2d | nn.Linear, split: int | None) -> list[slice]:
    """Of the input channels: the whole, or those before and after ``split``."""
    edges = [0, layer.weight.shape[1]] if split is None else [0, split, layer.weight.shape[1]]
    return [slice(a, b) for a, b in pairwise(edges)]


def input_quantizers(
    layer: nn.Conv2d | nn.Linear, name: str, config: PTQConfig, context: StepContext, parts: list[slice]
) -> nn.ModuleList:
    """An `ActivationQuantizer` for each part of the input of ``layer``; none if its activations stay float."""
    labels, bits = ["input"] if len(parts) == 1 else ["input[h]", "input[skip]"], config.bits_of(name)[1]
    by_channel, groups = config.activation_granularity == "channel", getattr(layer, "groups", 1)
    channels = [(part.stop - part.start) * groups if by_channel else None for part in parts]
    if bits == OFF:
        return nn.ModuleList()
    return nn.ModuleList(
        ActivationQuantizer(f"{name}.{label}", bits, config, context, count) for label, count in zip(labels, channels, strict=True)
    )
