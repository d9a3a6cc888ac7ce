"""Weights as 8-bit integers, with an offset for each output channel where their grid is no 8-bit one; and as they are stored."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST, LARGEST = -128, 127
"""Of an 8-bit weight."""
NIBBLE = 4
"""Bits of half a byte: weights of as many or fewer are stored two a byte, others one a byte."""


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


def packed_shape(shape: torch.Size, bits: int) -> torch.Size:
    """Of what `pack` gives for q of ``shape``."""
    return torch.Size([(shape.numel() + 1) // 2]) if bits <= NIBBLE else shape


def pack(q: Tensor, bits: int) -> Tensor:
    """q = 0 .. 2^bits - 1 of any shape, as uint8: of 4 bits or fewer [ceil(n / 2)], the first of two in the low half; of more bits
    in q's shape.
    """
    q = q.to(torch.uint8)
    if bits > NIBBLE:
        return q
    flat = q.flatten()
    flat = torch.cat([flat, flat.new_zeros(len(flat) % 2)])
    return flat[::2] | flat[1::2] << NIBBLE


def unpack(packed: Tensor, shape: torch.Size, bits: int) -> Tensor:
    """What `pack` was given, uint8, of ``shape``."""
    if bits > NIBBLE:
        return packed.view(shape)
    halves = torch.stack([packed & (1 << NIBBLE) - 1, packed >> NIBBLE], dim=1)
    return halves.flatten()[: shape.numel()].view(shape)
