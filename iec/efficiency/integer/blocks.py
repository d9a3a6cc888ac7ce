"""Residual blocks on integers: norm, SiLU and quantization in one pass before each of the two convolutions."""

from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from iec.efficiency.integer.layers import IntegerLayer


def fuse_blocks(unet: nn.Module) -> None:
    """Give every residual block whose convolutions are `IntegerLayer`s the forward below, in place.

    Blocks that resample, or scale and shift by the time embedding, keep theirs: their layers are on integers all the same.
    """
    from diffusers.models.resnet import ResnetBlock2D

    for module in unet.modules():
        if isinstance(module, ResnetBlock2D) and _is_plain(module):
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]  # it stays a ResnetBlock2D for who asks


def fused_parts(module: nn.Module) -> tuple[str, ...]:
    """Names of the parts that the forward of a fused block does not call; none of another module."""
    fused = getattr(vars(module).get("forward"), "__func__", None) is forward
    return ("norm1", "nonlinearity", "conv1", "norm2", "dropout", "conv2") if fused else ()


def _is_plain(block: Any) -> bool:
    return (
        isinstance(block.conv1, IntegerLayer)
        and block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def forward(block: Any, x: Tensor, temb: Tensor | None) -> Tensor:
    """What `ResnetBlock2D` computes in evaluation mode."""
    add = None
    if block.time_emb_proj is not None and temb is not None:
        add = block.time_emb_proj(temb if block.skip_time_act else F.silu(temb))
    h = block.conv1.after_norm_and_silu(x, None, block.norm1)
    h = block.conv2.after_norm_and_silu(h, add, block.norm2)
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(x)
    h = h.add_(x)
    return h if block.output_scale_factor == 1 else h.div_(block.output_scale_factor)
