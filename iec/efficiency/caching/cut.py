"""Where a UNet is cut: everything below one skip connection is the deep part, whose result F is cached."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from iec.efficiency.caching.structure import Structure, structure_of
from iec.errors import ConfigError

Kind = Literal["pixel", "latent"]
"""``pixel``: the first downsampler, where the released DDPM code of DeepCache, CacheQuant and IEC cuts ("branch 2" with two
residual blocks a level; cut 3 of the CIFAR-10 model). The MACs that DeepCache publishes for that model are those of cut 2, one skip
shallower. ``latent``: cut 0, the output of ``conv_in``, for LDM and Stable Diffusion."""


@dataclass(frozen=True)
class Cut:
    """Cut k of S: a cached call runs ``down`` and ``up``, a full call everything.

    index: k = 0 .. S-1; skip k is the k-th tensor that the down path sets aside, 0 is the output of ``conv_in``.
    skip, skip_channels: the module that makes skip k, and its channels.
    consumer: the residual block that takes cat([F, skip k]), ``up_blocks.<up_block>.resnets.<resnet>``.
    channels: C of F, [B, C, ceil(H / factor), ceil(W / factor)] for an input of H x W.
    layers: the layers whose input begins with the C channels of F (its first convolution sees them normalized).
    separable: no group of the consumer's GroupNorm holds channels of both F and the skip.
    down, up: names of the modules that a cached call runs, in order, without the time embedding and the output layers.
    """

    index: int
    skip: str
    skip_channels: int
    consumer: str
    up_block: int
    resnet: int
    channels: int
    factor: int
    layers: tuple[str, ...]
    separable: bool
    down: tuple[str, ...]
    up: tuple[str, ...]


def find_cut(unet: Any, cut: int | Kind) -> Cut:
    """Cut number ``cut``, or the paper's cut for a ``pixel`` or ``latent`` model. Raises `ConfigError` for one that is not there.

    Which of the two a model is does not show in its UNet: LDM's unconditional models are UNet2DModels of 3 channels as well.
    """
    structure = structure_of(unet)
    total = len(structure.down)
    index = _default(structure, cut) if isinstance(cut, str) else cut
    if type(index) is not int or not 0 <= index < total:
        raise ConfigError(
            f"efficiency.cut={cut!r} is not there: this UNet has the cuts 0 (shallowest) .. {total - 1} (deepest); "
            f"{' and '.join(get_args(Kind))} name the paper's."
        )
    return _describe(structure, unet.config.block_out_channels[0], index)


def _default(structure: Structure, kind: str) -> int:
    if kind not in get_args(Kind):
        raise ConfigError(f"Unknown cut {kind!r}; give a number, or {' or '.join(get_args(Kind))}.")
    if kind == "latent":
        return 0
    for k, stage in enumerate(structure.down):
        if stage.downsamples:
            return k
    raise ConfigError("The pixel cut is the first downsampler, and this UNet has none. Give the cut as a number.")


def _describe(structure: Structure, stem_channels: int, index: int) -> Cut:
    source, taking = structure.down[index], structure.up[len(structure.up) - 1 - index]
    # the attribute of the block, not of its convolution, which quantization replaces; attention keeps the channels
    skip_channels = source.first[1].out_channels if index else stem_channels
    consumer, resnet = taking.first
    channels = resnet.in_channels - skip_channels
    group = resnet.norm1.num_channels // resnet.norm1.num_groups
    _, block, _, number = consumer.split(".")
    return Cut(
        index=index,
        skip=source.last[0],
        skip_channels=skip_channels,
        consumer=consumer,
        up_block=int(block),
        resnet=int(number),
        channels=channels,
        factor=2 ** sum(stage.downsamples for stage in structure.down[: index + 1]),
        layers=tuple(f"{consumer}.{layer}" for layer in ("conv1", "conv_shortcut") if getattr(resnet, layer) is not None),
        separable=channels % group == 0,
        down=tuple(name for stage in structure.down[: index + 1] for name, _ in stage.parts),
        up=tuple(name for stage in structure.up[len(structure.up) - 1 - index :] for name, _ in stage.parts),
    )
