"""The float arithmetics of a GPU, and how far each may be from a reference in float32 on the CPU.

**The limit** is of the relative RMS error |y - r| / |r|, taken in float64, of an output behind L layers with weights:

    4 sqrt(L) (u + v sqrt(K / 6)),    u = 2^-p,  v = 2^-24

With p bits of significand an operation rounds its result by at most u, relatively: 2^-24 in float32, 2^-11 in TF32 (operands of
products) and float16, 2^-8 in bfloat16. All of them add products up in float32; a sum of K terms of random signs, one after the
other, is off by v sqrt(K / 6), relatively. Errors of different layers are independent and add as a random walk, hence sqrt(L); 4 is
for what L does not count: activations, attention, sums of residuals.

Measured on a CPU, with random weights: float32 against float64 at most 1.5 u sqrt(L), bfloat16 against float32 0.7 u sqrt(L);
float32 without oneDNN against float32 with it at most 0.15 of the limit. Float32's limit is some 30 times below what TF32 does, and
sees one wrong weight; those of 16 bits see a wrong layer, a missing scale, another input, whose errors are near 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iec.gpucheck.part import Line

HEADROOM, SUM = 4.0, 2.0**-24


@dataclass(frozen=True)
class Arithmetic:
    """dtype: of the network. tf32: whether float32 products may take TF32. bits: of the significand, p."""

    name: str
    dtype: torch.dtype
    tf32: bool
    bits: int

    @property
    def roundoff(self) -> float:
        """u = 2^-p."""
        return 2.0**-self.bits

    def limit(self, layers: int, terms: int) -> float:
        """Of the relative RMS error behind so many layers with weights, whose sums have at most so many terms."""
        return HEADROOM * layers**0.5 * (self.roundoff + SUM * (terms / 6) ** 0.5)

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """With torch's switches for TF32 as this arithmetic has them, within the block.

        On a CPU float32 leaves oneDNN out: a rehearsal then compares two implementations that round differently, as a GPU's would.
        """
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        onednn: Any = torch.backends.mkldnn
        before = matmul.allow_tf32, cudnn.allow_tf32, onednn.enabled
        matmul.allow_tf32 = cudnn.allow_tf32 = self.tf32
        onednn.enabled = device.type != "cpu" or self.dtype != torch.float32
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, onednn.enabled = before


FLOAT32 = Arithmetic("float32", torch.float32, False, 24)
TF32 = Arithmetic("TF32", torch.float32, True, 11)
BFLOAT16 = Arithmetic("bfloat16", torch.bfloat16, False, 8)
FLOAT16 = Arithmetic("float16", torch.float16, False, 11)
ARITHMETICS = (FLOAT32, TF32, BFLOAT16, FLOAT16)


def supported(device: torch.device, arithmetics: tuple[Arithmetic, ...] = ARITHMETICS) -> list[Arithmetic]:
    """A CPU has no TF32, which would be float32 under another name, and is slow in float16, which it has no units for."""
    return [arithmetic for arithmetic in arithmetics if device.type == "cuda" or arithmetic not in (TF32, FLOAT16)]


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|y - r| / |r| over all elements, in float64; NaN and infinity stay what they are."""
    y, r = value.detach().cpu().double(), reference.detach().cpu().double()
    return float((y - r).norm() / r.norm())


def depth(module: nn.Module) -> tuple[int, int]:
    """(L, K): modules with parameters of their own, and the most terms that a sum of one of them has."""
    owners = [[*part.parameters(recurse=False)] for part in module.modules()]
    weights = [p for own in owners for p in own if p.ndim > 1]
    return sum(1 for own in owners if own), max((p[0].numel() for p in weights), default=1)


def compared(what: str, arithmetic: Arithmetic, value: Tensor, reference: Tensor, size: tuple[int, int]) -> Line:
    """The line of one comparison; size: see `depth`."""
    error, (layers, terms) = relative_error(value, reference), size
    limit = arithmetic.limit(layers, terms)
    return Line.at_most(f"{what}, {arithmetic.name}", error, limit, "relative RMS error", f"{layers} layers, sums of {terms}")
