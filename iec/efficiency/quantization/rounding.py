"""Learned rounding of weights: AdaRound (arXiv 2004.10568), with the annealed regulariser that BRECQ (arXiv 2102.05426) uses.

A weight is floor(w / delta) + h(v), with one variable v a weight and

    h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1).

It starts at h = frac(w / delta), which is the float weight, and ends at 1[v >= 0].
"""

import torch
from torch import Tensor

STRETCH, SHIFT = 1.2, 0.1


def rounding_of(v: Tensor) -> Tensor:
    """h(v), in [0, 1]."""
    return (STRETCH * v.sigmoid() - SHIFT).clamp(0, 1)


def variable_of(h: Tensor) -> Tensor:
    """The v with h(v) = h, for h in [0, 1]."""
    return -(STRETCH / (h + SHIFT) - 1).log()


def undecided(h: Tensor, beta: float) -> Tensor:
    """sum(1 - |2 h - 1|^beta), of shape []: 0 where every h is 0 or 1, 1 for each h of 1/2. A large beta spares all but those
    close to 0 or 1, a small one pushes all of them there.
    """
    return h.numel() - (2 * h - 1).abs().pow(beta).sum()


def annealed(start: float, end: float, iteration: int, iterations: int, warmup: float) -> float | None:
    """beta at ``iteration`` of 0 .. iterations - 1: None in the first warmup x iterations, then linear from ``start`` to ``end``.

    Linear as in BRECQ's code (LinearTempDecay).
    """
    first = warmup * iterations
    if iteration < first:
        return None
    return end + (start - end) * (1 - (iteration - first) / (iterations - first))


class LearnedRounding:
    """The rounding of one weight while it is learned.

    weight: [O, I, ..], float32. delta > 0, low and high: the grid, broadcast against it. v: [O, I, ..], the variables, a leaf
    that requires gradients. Weights outside the grid stay on its edge whatever their v.
    """

    def __init__(self, weight: Tensor, delta: Tensor, low: Tensor, high: Tensor) -> None:
        steps = weight / delta
        self.delta, self.low, self.high, self.floor = delta, low, high, steps.floor()
        self.v = variable_of(steps - self.floor).requires_grad_()

    def weight(self) -> Tensor:
        """clamp(floor(w / delta) + h(v), low, high) delta."""
        steps = self.floor + rounding_of(self.v)
        return torch.minimum(torch.maximum(steps, self.low), self.high) * self.delta

    def undecided(self, beta: float) -> Tensor:
        return undecided(rounding_of(self.v), beta)

    def rounded_up(self) -> Tensor:
        """1[v >= 0], bool."""
        return self.v.detach() >= 0
