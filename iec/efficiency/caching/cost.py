"""What a cached call costs, in multiply-accumulates (MACs) of convolutions, linear layers and attention products."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from iec.efficiency.caching.cut import Kind
from iec.efficiency.caching.network import CachedUNetNetwork
from iec.network import FeatureCache, Mode, Step


def cached_cost(unet: Any, cut: int | Kind, shape: tuple[int, ...], cond: Tensor | None = None) -> float:
    """MACs of a cached call as a fraction of those of a full call; arguments as of `call_macs`."""
    full, cached = call_macs(unet, cut, shape, cond)
    return cached / full


def call_macs(unet: Any, cut: int | Kind, shape: tuple[int, ...], cond: Tensor | None = None) -> tuple[int, int]:
    """MACs of a full and of a cached call on one image of ``shape`` (C, H, W), with ``cond`` [1, ...].

    Only ``unet.config`` is used: the layers are run without data (on torch's meta device), so a quantized UNet counts like the
    float one and nothing of its size is allocated. Norms, activations, biases and the additions of residuals are not counted.
    """
    with torch.device("meta"):
        twin = type(unet).from_config(unet.config)
        x = torch.empty(1, *shape)
    cond = None if cond is None else cond.to("meta")
    network = CachedUNetNetwork(twin, cut)
    counter = _Counter(twin)
    counts, cache = [], None
    modes: tuple[Mode, ...] = ("full", "cached")
    for mode in modes:
        counter.macs = 0
        step = Step(0, 1, mode)
        feature = network(x, step, cond, cache).feature
        cache = None if feature is None else FeatureCache(feature, step)
        counts.append(counter.macs)
    return counts[0], counts[1]


class _Counter:
    """Adds up the MACs of every call of the modules of ``unet``."""

    def __init__(self, unet: nn.Module) -> None:
        self.macs = 0
        for module in unet.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(self._layer)
            elif isinstance(module, Attention):
                module.register_forward_pre_hook(self._attention, with_kwargs=True)

    def _layer(self, module: nn.Module, _: object, out: Tensor) -> None:
        self.macs += out.numel() * module.weight[0].numel()  # type: ignore[index]  # [O, I, ...]: MACs of an output

    def _attention(self, module: Attention, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        """Q K^T and the product with V; [B, N, C] tokens or a [B, C, H, W] map."""
        h = args[0]
        queries = h.shape[1] if h.ndim == 3 else h.shape[-2] * h.shape[-1]
        context = kwargs.get("encoder_hidden_states")
        keys = queries if context is None else context.shape[1]
        self.macs += 2 * len(h) * queries * keys * module.inner_dim
