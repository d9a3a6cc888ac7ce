"""Weights as 8-bit integers, with an offset for each output channel where their grid is no 8-bit one."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST, LARGEST = -128, 127
"""Of an 8-bit weight."""


@dataclass(frozen=True)
class IntegerWeight:
    """A weight W = (codes + offset) delta, for each output channel.

    codes: int8 [O, I, ..]. offset: int32 [O], None where it is 0 in all channels. delta: float32 [O].
    """

    codes: Tensor
    offset: Tensor | None
    delta: Tensor

    @classmethod
    def of(cls, k: Tensor, delta: Tensor) -> "IntegerWeight":
        """Of W = k delta. k: [O, I, ..], whole numbers, of which no channel spans more than 256.

        The offset is 0 where k fits into 8 bits, and else moves the smallest k of the channel to -128. W4 weights fit, and so do
        symmetric W8 ones; the grid of an asymmetric W8 weight is 0 .. 255 with a zero point, and does not.
        """
        flat = k.flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        offset = torch.where((low >= SMALLEST) & (high <= LARGEST), 0, low - SMALLEST)
        codes = (k - offset.view(-1, *[1] * (k.ndim - 1))).to(torch.int8)
        return cls(codes, offset.to(torch.int32) if bool(offset.any()) else None, delta.clone())
