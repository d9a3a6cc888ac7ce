"""The asymmetric uniform quantizer and the search for its scale.

With L = 2^bits levels, a scale delta > 0 and a zero point z,

    q  = clamp(round(x / delta) + round(z), 0, L - 1),      xq = (q - round(z)) delta,

where round takes halves to the even neighbour. Everything is simulated: xq is a float32 tensor on the grid.
Source: UniformAffineQuantizer in quant/quant_layer.py of BienLuky/CacheQuant and zysxmu/IEC (after BRECQ, arXiv 2102.05426).
"""

from typing import Any

import torch
from torch import Tensor

SCALE_RULES = ("mse", "max", "percentile")
CANDIDATES = tuple(1.0 - 0.01 * i for i in range(0, 80, 2))
"""Fractions s of the range that the mse rule tries: 1.00, 0.98, .. 0.22."""
EXPONENT = 2.4
"""The mse rule minimises mean |x - xq|^2.4 (LAPQ, arXiv 1911.07190), in spite of its name."""
MIN_DELTA = 1e-8
CHUNK = 1 << 20
"""Elements scored at a time: what one pass leaves in a processor's cache, the next one finds there."""


def levels(bits: int) -> int:
    return 1 << bits


def round_to_grid(x: Tensor, delta: Tensor, low: Tensor | float, high: Tensor | float, out: Tensor | None = None) -> Tensor:
    """clamp(round(x / delta), low, high) delta, in ``out`` if given (which may not be x's memory).

    With low = -round(z) and high = L - 1 - round(z) this is xq without the two additions of z. delta has to be a tensor on
    x's device: dividing by a Python number is a multiplication by its reciprocal on CUDA, which rounds differently.
    """
    y = torch.div(x, delta, out=out)
    return y.round_().clamp_(low, high).mul_(delta)  # type: ignore[arg-type]  # the stubs lack the mixed overloads


class StraightThrough(torch.autograd.Function):
    """`round_to_grid` with the gradient of learned step sizes (LSQ, arXiv 1902.08153): rounding counts as the identity.

    With y = x / delta and q = clamp(round(y), low, high), inside meaning low <= round(y) <= high:

        d xq / d x = 1 inside, 0 outside;      d xq / d delta = q - y inside, q outside.

    delta, low and high broadcast against x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, low: Tensor, high: Tensor) -> Tensor:
        y = x / delta
        rounded = y.round()
        q = torch.minimum(torch.maximum(rounded, low), high)
        inside = q == rounded
        ctx.shape = delta.shape
        ctx.save_for_backward(inside, torch.where(inside, q - y, q) if ctx.needs_input_grad[1] else None)
        return q.mul_(delta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inside, slope = ctx.saved_tensors
        (grad,) = grads
        of_x = grad * inside if ctx.needs_input_grad[0] else None
        of_delta = None if slope is None else (grad * slope).sum_to_size(ctx.shape)
        return of_x, of_delta, None, None


def search_scale(
    x: Tensor,
    bits: int,
    rule: str = "mse",
    *,
    per_channel: bool = False,
    samples: int | None = None,
    percentile: float = 0.9999,
) -> tuple[Tensor, Tensor]:
    """(delta, z), float32: of shape [O], one pair for every x[o], if ``per_channel``; else of shape [].

    * ``mse``: m = min x, M = max x; for each s of `CANDIDATES` delta = (s M - s m) / (L - 1), z = round(-s m / delta); the s
      with the least mean |x - xq|^2.4 wins, the first one of equals;
    * ``max``: delta = (M - m) / (L - 1), z = round(-min(m, 0) / delta), computed in float64, as in the original: where m > 0 the
      grid is that of 0 .. M - m, and what is above it is clamped;
    * ``percentile``: delta = (b - a) / (L - 1), z = round(-a / delta), computed in float64, with the order statistics a =
      x_(k + 1) and b = x_(n - k) of the n values, k = int((1 - percentile) (n - 1)) in floating point (one less
      than the product where that is a hair below a whole number), exact order statistics for any n; m and M in their place
      where a = b. The original's rule of that name takes the order statistics at 1 % and 99 % but uses them for z alone:
      its delta is that of the raw extremes.

    samples: score candidates on about that many evenly spaced elements of x instead of all; m and M are always those of all.

    delta is at least 1e-8. The mse rule scores the pair that it returns. The original scores a range widened to include 0
    and returns the raw one; the two agree where m <= 0 <= M and differ on one-sided slices. A constant slice, whose range
    is empty, gets the grid that holds its value exactly (an all-zero one stays zero); the original divides by zero there.
    """
    slices = x.detach().to(torch.float32)
    slices = slices.flatten(1) if per_channel else slices.reshape(1, -1)
    low, high = torch.aminmax(slices, dim=1)
    if rule == "mse":
        stride = 1 if samples is None else max(1, slices.shape[1] // samples)
        delta, zero_point = _mse(slices[:, ::stride].contiguous(), low, high, bits)
    elif rule == "max":
        delta, zero_point = _max(low, high, bits)
    elif rule == "percentile":
        delta, zero_point = _percentile(slices, low, high, bits, percentile)
    else:
        raise ValueError(f"unknown scale rule {rule!r}")
    constant = low == high
    delta = torch.where(constant, torch.where(low == 0, MIN_DELTA, low.abs()), delta)
    zero_point = torch.where(constant, (low < 0).to(torch.float32), zero_point)
    return (delta, zero_point) if per_channel else (delta[0], zero_point[0])


def _max(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = low.double(), high.double()
    delta = ((high - low) / (levels(bits) - 1)).clamp_min(MIN_DELTA)
    return delta.float(), (-low.clamp_max(0) / delta).round().float()


def _percentile(slices: Tensor, low: Tensor, high: Tensor, bits: int, percentile: float) -> tuple[Tensor, Tensor]:
    count = slices.shape[1]
    cut = int((1 - percentile) * (count - 1))  # values cut off at either end
    if cut:
        a, b = slices.kthvalue(cut + 1, dim=1).values, slices.kthvalue(count - cut, dim=1).values
        low, high = torch.where(a < b, a, low), torch.where(a < b, b, high)
    low, high = low.double(), high.double()
    delta = ((high - low) / (levels(bits) - 1)).clamp_min(MIN_DELTA)
    return delta.float(), (-low / delta).round().float()


def _mse(slices: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    fractions = torch.tensor(CANDIDATES, dtype=torch.float32, device=slices.device)[:, None]
    delta = ((fractions * high - fractions * low) / (levels(bits) - 1)).clamp_min(MIN_DELTA)  # [40, O]
    zero_point = (-(fractions * low) / delta).round()
    if len(slices) == 1:
        best = _best_of_one(slices[0], delta[:, 0], zero_point[:, 0], bits)
    else:
        best = _best_of_each(slices, delta, zero_point, bits)
    pick = best[None]
    return delta.gather(0, pick)[0], zero_point.gather(0, pick)[0]


def _best_of_each(slices: Tensor, delta: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Index [O] of the best candidate of every slice of [O, K]; each is scored as if it were alone."""
    at_once = max(1, CHUNK // slices.shape[1])  # pairs of candidate and slice
    low, high = -zero_point, levels(bits) - 1 - zero_point
    best = []
    for part in torch.arange(len(slices), device=slices.device).split(at_once):
        tables = (table[:, part, None].split(max(1, at_once // len(part))) for table in (delta, low, high))  # C x O x 1
        scores = [_errors(slices[part], *bounds).pow_(EXPONENT).mean(2) for bounds in zip(*tables, strict=True)]
        best.append(torch.cat(scores).argmin(0))  # the first of equals
    return torch.cat(best)


def _best_of_one(x: Tensor, delta: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Index [1] of the best candidate for all of x [K], without finishing the sum of every candidate.

    All terms are positive, so a partial sum above the best complete one settles a candidate. Taking the promising ones first
    (ranked on a strided sample) leaves fewer sums to finish. The winner is the plain search's, up to the rounding of the sums.
    """
    sample = x[:: min(64, max(1, len(x) >> 12))]  # sets the order only, not the result
    size = min(CHUNK, max(1 << 15, len(x) >> 3))
    low, high = -zero_point, levels(bits) - 1 - zero_point
    ranking = _errors(sample, delta[:, None], low[:, None], high[:, None]).pow_(EXPONENT).sum(1).argsort(stable=True)
    bounds = list(zip(low.tolist(), high.tolist(), strict=True))  # numbers: clamping with tensors is several times slower
    best, winner = float("inf"), 0
    for candidate in ranking.tolist():
        total, limit = 0.0, best
        for chunk in x.split(size):
            errors = _errors(chunk, delta[candidate], *bounds[candidate])
            total += float(errors.log2_().mul_(EXPONENT).exp2_().sum())  # as pow_, but faster; it is most of the time
            if total > limit:
                break
        if (total, candidate) < (best, winner):
            best, winner = total, candidate
    return torch.tensor([winner], device=x.device)


def _errors(x: Tensor, delta: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return round_to_grid(x, delta, low, high).sub_(x).abs_()
