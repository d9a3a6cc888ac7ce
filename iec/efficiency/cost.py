"""What network calls cost: multiply-accumulates (MACs), bit operations (BOPs) and the bytes of the weights.

MACs are those of convolutions, linear layers and attention products. BOPs are MACs times the bits of both operands (32 for
float), the convention of quantization papers: a W8A8 call has 1/16 of the BOPs of the float one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iec.efficiency.caching.cut import Cut, Kind, find_cut
from iec.efficiency.caching.forecast import REUSE, Forecast
from iec.efficiency.caching.network import CachedUNetNetwork
from iec.efficiency.quantization import PTQConfig
from iec.models import Model
from iec.models.ideal import IdealNetwork
from iec.models.unet import network_of
from iec.sampling.network import FeatureCache, Mode, Network, Step

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

FLOAT = PTQConfig(weight_bits=32, activation_bits=32, softmax_bits=32, end_bits=32)


@dataclass(frozen=True)
class CallCost:
    """Of one network call on one image."""

    macs: float = 0.0
    bops: float = 0.0

    def __mul__(self, count: float) -> "CallCost":
        return CallCost(self.macs * count, self.bops * count)

    def __add__(self, other: "CallCost") -> "CallCost":
        return CallCost(self.macs + other.macs, self.bops + other.bops)


@dataclass(frozen=True)
class Cost:
    """weight_bytes: of all weights, stored at their bits. full, cached: of a call on one image; None without caching. cache_bytes:
    what the sampling loop stores of one image between calls, features and probes; None where it is not known.
    """

    weight_bytes: int
    full: CallCost
    cached: CallCost | None = None
    cache_bytes: int | None = None

    def per_image(self, calls: Mapping[str, float]) -> CallCost:
        """Of a whole image, from the measured calls by kind (the fields of `iec.sampling.network.Calls`)."""
        cached = self.cached or CallCost()
        return self.full * (calls["full"] + calls["correction"]) + cached * (calls["cached"] + calls["cached_correction"])


@dataclass(frozen=True)
class Operation:
    """MACs of one layer, or of one of the two products of an attention: ``scores`` (q k^T) or ``values`` (softmax v)."""

    name: str
    kind: str
    macs: int

    def bits(self, config: PTQConfig) -> tuple[int, int]:
        """Of its two operands."""
        if self.kind == "layer":
            return config.bits_of(self.name)
        return config.activation_bits if self.kind == "scores" else config.softmax_bits, config.activation_bits


def network_cost(
    unet: Any,
    shape: tuple[int, ...],
    weight_bytes: int,
    cond: Tensor | None = None,
    cut: int | Kind | None = None,
    config: PTQConfig = FLOAT,
    branches: int = 1,
    forecast: Forecast = REUSE,
    history: int = 0,
) -> Cost:
    """The cost of ``unet`` quantized as ``config`` says and cached at ``cut``; arguments as of `operations`.

    unet: without ``cut`` it may be a transformer. branches: how often an image goes through it, 2 under guidance. forecast: how
    many features the loop has to store. (The weighted sum of them, in cached calls, is no product of layers and is not counted.)
    history: features of earlier refreshes that it stores at least, as adaptive refresh does.
    """

    def total(calls: list[Operation]) -> CallCost:
        bits = [operation.bits(config) for operation in calls]
        return CallCost(sum(o.macs for o in calls), sum(o.macs * a * b for o, (a, b) in zip(calls, bits, strict=True))) * branches

    full, cached = operations(unet, shape, cond, cut)
    if cut is None:
        return Cost(weight_bytes, total(full))
    stored = stored_values(find_cut(unet, cut), shape, forecast, history) * branches * unet.dtype.itemsize
    return Cost(weight_bytes, total(full), total(cached), stored)


def stored_values(cut: Cut, shape: tuple[int, ...], forecast: Forecast, history: int = 0) -> int:
    """Numbers that the sampling loop stores of one image of ``shape`` (C, H, W) between calls. history: see `network_cost`."""
    channels = cut.channels + (cut.skip_channels if forecast.needs_probe else 0)
    return (max(history, forecast.history) + 1) * channels * prod(-(-size // cut.factor) for size in shape[1:])


def operations(
    unet: Any, shape: tuple[int, ...], cond: Tensor | None = None, cut: int | Kind | None = None
) -> tuple[list[Operation], list[Operation]]:
    """Of a full and (with ``cut``) of a cached call on one image of ``shape`` (C, H, W), with ``cond`` [1, ...].

    Only ``unet.config`` is used: the layers are run without data (on torch's meta device), so a quantized UNet counts like the
    float one and nothing of its size is allocated. Norms, activations, biases and the additions of residuals are not counted.
    """
    with torch.device("meta"):
        twin = type(unet).from_config(unet.config)
        x = torch.empty(1, *shape)
    cond = None if cond is None else cond.to("meta")
    network: Network = network_of(twin) if cut is None else CachedUNetNetwork(twin, cut)
    recorder = _Recorder(twin)
    counted: list[list[Operation]] = []
    cache: FeatureCache | None = None
    modes: tuple[Mode, ...] = ("full",) if cut is None else ("full", "cached")
    for mode in modes:
        recorder.found = []
        step = Step(0, 1, mode)
        feature = network(x, step, cond, cache).feature
        cache = None if feature is None else FeatureCache(feature, step)
        counted.append(recorder.found)
    return counted[0], counted[1] if cut is not None else []


class _Recorder:
    """Notes what every call of the modules of ``unet`` multiplies."""

    def __init__(self, unet: nn.Module) -> None:
        from diffusers.models.attention_processor import Attention

        self.found: list[Operation] = []
        self.names = {module: name for name, module in unet.named_modules()}
        for module in unet.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(self._layer)
            elif isinstance(module, Attention):
                module.register_forward_pre_hook(self._attention, with_kwargs=True)

    def _layer(self, module: nn.Module, _: object, out: Tensor) -> None:
        each = module.weight[0].numel()  # type: ignore[index]  # [O, I, ...]: MACs of an output
        self.found.append(Operation(self.names[module], "layer", out.numel() * each))

    def _attention(self, module: "Attention", args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        """Q K^T and the product with V; [B, N, C] tokens or a [B, C, H, W] map."""
        h = args[0]
        queries = h.shape[1] if h.ndim == 3 else h.shape[-2] * h.shape[-1]
        context = kwargs.get("encoder_hidden_states")
        keys = queries if context is None else context.shape[1]
        macs = len(h) * queries * keys * module.inner_dim
        self.found += [Operation(self.names[module], kind, macs) for kind in ("scores", "values")]


def model_cost(
    model: Model,
    weight_bytes: int,
    cut: int | Kind | None = None,
    config: PTQConfig = FLOAT,
    forecast: Forecast = REUSE,
    history: int = 0,
) -> Cost:
    """`network_cost` of the model's UNet; under guidance both branches count."""
    cond = None if model.card.tokens is None else torch.empty(1, *model.card.tokens)
    if model.card.takes_labels:
        cond = torch.zeros(1, dtype=torch.int64)
    return network_cost(model.unet, model.card.shape, weight_bytes, cond, cut, config, model.branches, forecast, history)


def ideal_cost(network: IdealNetwork) -> Cost:
    """Of its two matrix products with the data; the data are its weights."""
    macs = 2 * network.data.numel()
    return Cost(network.data.nbytes, CallCost(macs, macs * 32 * 32))
