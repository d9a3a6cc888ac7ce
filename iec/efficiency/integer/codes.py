"""8-bit codes of an input, the geometry of a convolution over them, and their sums over its windows."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iec.errors import ConfigError


@dataclass(frozen=True)
class Codes:
    """q: uint8 [.., C], contiguous; [B, H, W, C] of an image. sums: int32 [..], of q over the channels."""

    q: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Geometry:
    """Of a convolution; a linear layer has none."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Geometry":
        """Raises `ConfigError` for padding by anything but a number of zeros."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ConfigError(
                f"A convolution with padding={conv.padding!r}, padding_mode={conv.padding_mode} has no integer form here. Use "
                "efficiency.kernels=simulated."
            )
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups)


def window_sums(codes: Codes, z: int, shape: torch.Size, geometry: Geometry | None) -> Tensor:
    """sum (q - z) over the window and the input channels, [B, groups, H', W'] or [.., 1]: summed in int32, returned in float32.

    shape: of the weight.
    """
    if geometry is None:
        return (codes.sums - z * shape[1]).unsqueeze(-1).float()
    groups = geometry.groups
    sums = codes.sums[..., None] if groups == 1 else codes.q.unflatten(-1, (groups, -1)).sum(-1, dtype=torch.int32)
    sums = (sums - z * shape[1]).permute(0, 3, 1, 2)
    (below, right), kernel = geometry.padding, shape[2:]
    if below or right:
        sums = F.pad(sums, (right, right, below, below))
    for axis, k, stride, dilation in zip((2, 3), kernel, geometry.stride, geometry.dilation, strict=True):
        last = sums.shape[axis] - (k - 1) * dilation
        taps = [_every(sums.narrow(axis, i * dilation, last), axis, stride) for i in range(k)]
        sums = reduce(torch.add, taps)
    return sums.float()


def _every(x: Tensor, axis: int, stride: int) -> Tensor:
    return x[:, :, ::stride] if axis == 2 else x[..., ::stride]
