"""The modules of a model, built from its card: diffusers' and transformers' classes with the original repositories' settings.

Both libraries take seconds to import: they are imported when the first module is built, not when a configuration is checked.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from iec.errors import WeightsError
from iec.models.cards import Component

DIFFUSERS = frozenset(("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "VQModel", "AutoencoderKL"))
"""Kinds of components that are classes of diffusers."""
INERT = frozenset(("dropout", "projection_dim"))
"""Settings that change nothing of what is sampled. Nor does ``sample_size``, but for a DiT, whose positions follow from it."""


def build(component: Component, config: Mapping[str, Any] | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """The component's module in evaluation mode with seeded random parameters; the global generator is left alone.

    config: in place of the card's. On the ``meta`` device nothing is allocated: a structure to check things against or to put
    weights into. An unknown scaling factor (None) is 1: right for random weights only.
    """
    values = dict(component.config if config is None else config)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reach the generators of all devices
        module = _make(component.kind, values)
    if component.heads is not None:
        set_heads(module, component.heads)
    return module.eval().requires_grad_(False)


def _make(kind: str, config: dict[str, Any]) -> nn.Module:
    if kind in DIFFUSERS:
        if config.get("scaling_factor", 0) is None:
            config["scaling_factor"] = 1.0
        return _diffusers(kind).from_config(config)
    if kind == "CLIPTextModel":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig(**config))
    return nn.Embedding(config["num_embeddings"], config["embedding_dim"])


def _diffusers(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)


def set_heads(unet: nn.Module, heads: int) -> None:
    """Give every attention of a UNet that many heads: q, k and v keep their width C, a head has C / heads channels and the scale
    (C / heads)^-0.5. UNet2DModel only knows a head size. Raises `WeightsError` where C is not divisible.
    """
    from diffusers.models.attention_processor import Attention

    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            if module.inner_dim % heads:
                raise WeightsError(f"{name} has {module.inner_dim} channels, which {heads} heads cannot share. Correct the card.")
            module.heads = heads
            module.scale = (module.inner_dim // heads) ** -0.5


def fill_computed(module: nn.Module, component: Component, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Give a ``module`` of the meta device the buffers that its class computes and that no file holds: the positions of a DiT.

    They are taken from a module without blocks, so that nothing large is allocated.
    """
    if component.kind != "DiTTransformer2DModel":
        return
    for name, value in build(component, {**config, "num_layers": 0}).named_buffers():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, value.to(dtype))


def differences(component: Component, config: Mapping[str, Any]) -> list[str]:
    """Where a folder's configuration contradicts the card's: ``norm_eps: 1e-06 in the folder, 1e-05 in the card``.

    What a configuration leaves out has the class's default; of a UNet or a transformer, so has what the card leaves out. A
    decoder's scaling factor is the card's where the folder has none, and the folder's where the card knows none.
    """
    given, card = _complete(component.kind, config), component.config
    if component.name in ("unet", "transformer"):
        card = {key: value for key, value in _complete(component.kind, card).items() if not key.startswith("_")}
    inert = INERT if component.kind == "DiTTransformer2DModel" else INERT | {"sample_size"}
    ignored = {*inert, *(key for key in ("scaling_factor",) if config.get(key) is None or card.get(key) is None)}
    return [
        f"{key}: {given.get(key)!r} in the folder, {expected!r} in the card"
        for key, expected in card.items()
        if key not in ignored and _plain(given.get(key)) != _plain(expected)
    ]


def _complete(kind: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the class's defaults."""
    if kind in DIFFUSERS:
        with torch.device("meta"):
            return _diffusers(kind).from_config(dict(config)).config
    if kind == "CLIPTextModel":
        from transformers import CLIPTextConfig

        return CLIPTextConfig(**config).to_dict()
    return config


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
