"""The paper's models with random weights, small: for a comparison that takes seconds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from iec.gpucheck.part import Size
from iec.models.cards import Card, Component, card

Change = Callable[[Mapping[str, Any]], dict[str, Any]]
"""What is changed of a component's configuration, given that."""


def _few_channels(width: int) -> Change:
    return lambda config: {"block_out_channels": [width] * len(config["block_out_channels"]), "layers_per_block": 1}


SMALL: Mapping[str, Change] = {
    "UNet2DModel": _few_channels(64),
    "UNet2DConditionModel": lambda config: {**_few_channels(64)(config), "cross_attention_dim": 32},
    "DiTTransformer2DModel": lambda _: {"sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8},
    "VQModel": _few_channels(32),
    "AutoencoderKL": _few_channels(32),
    "CLIPTextModel": lambda _: {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2},
    "Embedding": lambda _: {"embedding_dim": 32},
}
"""What makes a kind of component tiny. 64 channels, so that a group of GroupNorm(32) holds more than one."""
EXTENT = {"pixel": 32, "latent": 16}
"""Height and width of the state."""
ARCHITECTURES = (
    "ddim_cifar",
    "ddim_lsun_bedroom",
    "ldm_lsun_bedroom",
    "ldm_lsun_church",
    "ldm_imagenet",
    "sd_coco",
    "dit_imagenet",
)
"""One card of each architecture of the paper; ddim_lsun_church has that of ddim_lsun_bedroom."""


def tiny(name: str) -> Card:
    """The card with its components made small: the same block types and settings, few channels, on few pixels."""
    return _on_few_pixels(card(name), SMALL)


def with_few_pixels(name: str) -> Card:
    """The card with its own networks, on few pixels."""
    extent = {"sample_size": EXTENT["latent"]}
    return _on_few_pixels(card(name), {"DiTTransformer2DModel": lambda _: extent})  # whose positions follow from it


def small_card(name: str, size: Size) -> Card:
    """`tiny` at toy size, else `with_few_pixels`."""
    return tiny(name) if size == "toy" else with_few_pixels(name)


def _on_few_pixels(full: Card, changes: Mapping[str, Change]) -> Card:
    components = {key: _changed(component, changes) for key, component in full.components.items()}
    extent = EXTENT[full.cut]
    changed = replace(
        full, components=components, shape=(full.shape[0], extent, extent), batch_size=2, num_images=3, trace_images=1
    )
    factor = 1 if changed.decoder is None else 2 ** (len(changed.decoder.config["block_out_channels"]) - 1)
    return replace(changed, resolution=extent * factor)


def _changed(component: Component, changes: Mapping[str, Change]) -> Component:
    config = {**component.config, **changes.get(component.kind, lambda _: {})(component.config)}
    if changes is SMALL and config.get("attention_head_dim") and component.kind == "UNet2DModel":
        config["attention_head_dim"] = 8 if component.heads else 32
    return replace(component, config=config)
