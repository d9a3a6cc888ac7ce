"""A diffusers UNet as a flat list of stages, so that any suffix of the down path and prefix of the up path can be left out.

Down stage k makes skip k: ``conv_in``, then every residual block (with the attention after it) and every downsampler. Up stage j
takes skip S-1-j: a residual block with its attention, and the upsampler if it is the last of its block. What goes from one up
stage into the next is therefore what enters a residual block before its concatenation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iec.errors import ConfigError

BLOCKS = frozenset(
    {
        *("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        *("UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        *("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    }
)
"""Blocks whose parts are run one by one here (the mid block is run as a whole)."""

CONDITIONAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("class_embed_type", "num_class_embeds", "time_cond_proj_dim"), (None,)),
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "attention_type": ("default",),
    "dual_cross_attention": (False,),  # diffusers' own forward fails on it
}
"""Values of settings of a UNet2DConditionModel that need no input beside x, the timestep, text embeddings and, for ``text_time``
(Stable Diffusion XL), pooled ones and sizes."""


@dataclass(frozen=True)
class Signals:
    """What all stages of one call are given: emb [B, width] of time and class, and cond, the text embeddings."""

    emb: Tensor
    cond: Tensor | None


@dataclass(frozen=True)
class Stage:
    """Modules that run one after another, with their dotted names. They are the UNet's own, never copies."""

    parts: tuple[tuple[str, nn.Module], ...]

    @property
    def first(self) -> tuple[str, Any]:
        return self.parts[0]

    @property
    def last(self) -> tuple[str, Any]:
        return self.parts[-1]

    @property
    def downsamples(self) -> bool:
        return ".downsamplers." in self.first[0]

    def __call__(self, h: Tensor, signals: Signals, size: torch.Size | None = None) -> Tensor:
        """``size`` [h, w]: what an upsampler has to reach; None doubles."""
        for _, module in self.parts:
            h = _apply(module, h, signals, size)
        return h


@dataclass(frozen=True)
class Structure:
    """S down stages, the mid block if there is one, S up stages."""

    down: tuple[Stage, ...]
    mid: nn.Module | None
    up: tuple[Stage, ...]

    def run_mid(self, h: Tensor, signals: Signals) -> Tensor:
        if self.mid is None:
            return h
        cross = {"encoder_hidden_states": signals.cond} if getattr(self.mid, "has_cross_attention", False) else {}
        return self.mid(h, signals.emb, **cross)


def structure_of(unet: Any) -> Structure:
    """The stages of a UNet2DModel or UNet2DConditionModel. Raises `ConfigError` for a build that cannot be cut here."""
    require_supported(unet)
    down = [Stage((("conv_in", unet.conv_in),))]
    for i, block in enumerate(unet.down_blocks):
        name = f"down_blocks.{i}"
        down += [Stage(tuple(_layer(block, name, j))) for j in range(len(block.resnets))]
        if block.downsamplers is not None:
            down.append(Stage(tuple(_samplers(block.downsamplers, f"{name}.downsamplers"))))
    up = []
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            parts = list(_layer(block, f"up_blocks.{i}", j))
            if j == len(block.resnets) - 1 and block.upsamplers is not None:
                parts += _samplers(block.upsamplers, f"up_blocks.{i}.upsamplers")
            up.append(Stage(tuple(parts)))
    if len(down) != len(up):
        raise ConfigError(f"This UNet makes {len(down)} skips and takes {len(up)}; its feature cannot be cached.")
    return Structure(tuple(down), unet.mid_block, tuple(up))


def require_supported(unet: Any) -> None:
    """Raises `ConfigError` naming what keeps a UNet from being run stage by stage."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    conditional = isinstance(unet, UNet2DConditionModel)
    if not conditional and not isinstance(unet, UNet2DModel):
        raise ConfigError(f"Feature caching needs a diffusers UNet2DModel or UNet2DConditionModel, not a {type(unet).__name__}.")
    mid = () if unet.mid_block is None else (unet.mid_block,)
    blocks = (*unet.down_blocks, *mid, *unet.up_blocks)
    problems = []
    unknown = sorted({type(block).__name__ for block in blocks} - BLOCKS)
    if unknown:
        problems.append(f"blocks of type {', '.join(unknown)} (supported: {', '.join(sorted(BLOCKS))})")
    if any(getattr(block, "s1", None) for block in blocks):
        problems.append("FreeU switched on (disable_freeu switches it off)")
    if conditional:
        problems += [f"{k}={unet.config[k]!r}" for k, allowed in CONDITIONAL.items() if unet.config[k] not in allowed]
    if problems:
        raise ConfigError(f"Feature caching cannot run a UNet with {'; '.join(problems)}. Run this one without caching.")


def _layer(block: Any, name: str, j: int) -> Iterator[tuple[str, nn.Module]]:
    yield f"{name}.resnets.{j}", block.resnets[j]
    attentions = getattr(block, "attentions", None)
    if attentions is not None:
        yield f"{name}.attentions.{j}", attentions[j]


def _samplers(modules: nn.ModuleList, name: str) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.{i}", module) for i, module in enumerate(modules)]


def _apply(module: Any, h: Tensor, signals: Signals, size: torch.Size | None) -> Tensor:
    """One module of a block, called as diffusers' own block calls it."""
    from diffusers.models.resnet import ResnetBlock2D, Upsample2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    if isinstance(module, ResnetBlock2D):  # also as a down- or upsampler
        return module(h, signals.emb)
    if isinstance(module, Transformer2DModel):
        return module(h, encoder_hidden_states=signals.cond, return_dict=False)[0]
    if isinstance(module, Upsample2D):
        return module(h, size)
    return module(h)  # Attention, Downsample2D, and conv_in, which quantization may have replaced
