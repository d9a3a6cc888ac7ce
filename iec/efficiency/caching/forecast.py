"""What a cached call takes in place of the deep feature of its own step: that of the last refresh, or a forecast from several.

u is the clock of the call, u_0 > u_1 > .. that of the refreshes whose features F_0, F_1, .. are stored, and k = u - u_0. With the
divided differences F[u_0] = F_0 and F[u_0 .. u_i] = (F[u_0 .. u_{i-1}] - F[u_1 .. u_i]) / (u_0 - u_i), and m the order,

    F(u) = sum over i = 0 .. m of  b_i(u) F[u_0 .. u_i]

| method  | b_i                        | source                                                                                |
|---------|----------------------------|---------------------------------------------------------------------------------------|
| linear  | k^i, m = 1                 | what taylor and newton are at order 1                                                 |
| taylor  | k^i                        | TaylorSeer (2503.06923): i! F[u_0 .. u_i] stands for the i-th derivative at u_0       |
| newton  | (u - u_0) .. (u - u_{i-1}) | the polynomial through the stored features, exact for degree m; AB-Cache (2504.10540) |
| hicache | sigma^i H_i(sigma k)       | HiCache (2508.16984), H_i physicists' Hermite polynomials                             |
| probe   | -                          | F_1 + gamma (F_0 - F_1): DiCache (2508.17356), see `Probed`                           |

The released TaylorSeer divides the i-th difference by the newest gap alone. On even gaps that gives i! F[u_0 .. u_i], so that both
are the same there; on uneven gaps it is no derivative, and this is. On even gaps and k = one gap the weights of order 2 are
(2.5, -2, 0.5) for taylor and (3, -3, 1) for newton: noise in the stored features grows with the sum of their sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.network import FeatureCache, Step

Basis = Callable[[Sequence[float], float, int], float]
"""(the clocks u_0 .. of the stored features, u, i) -> b_i(u)"""


def taylor(nodes: Sequence[float], u: float, i: int) -> float:
    return (u - nodes[0]) ** i


def newton(nodes: Sequence[float], u: float, i: int) -> float:
    return prod(u - node for node in nodes[:i])


def hermite(sigma: float) -> Basis:
    """HiCache's. Of order 1 it is linear with the slope times 2 sigma^2. b_2 is not 0 at k = 0: no interpolation."""

    def basis(nodes: Sequence[float], u: float, i: int) -> float:
        x = sigma * (u - nodes[0])
        below, value = 0.0, 1.0  # H_{i+1} = 2 x H_i - 2 i H_{i-1}
        for j in range(i):
            below, value = value, 2 * x * value - 2 * j * below
        return sigma**i * value

    return basis


def weights(basis: Basis, nodes: Sequence[float], u: float) -> list[float]:
    """w with F(u) = sum_j w_j F_j, for the clocks u_0 > u_1 > .. > u_m of the stored features. Their sum is 1."""
    values = [basis(nodes, u, i) for i in range(len(nodes))]

    def share(i: int, j: int) -> float:
        """Of F_j in F[u_0 .. u_i]."""
        return 1 / prod(nodes[j] - nodes[other] for other in range(i + 1) if other != j)

    return [sum(values[i] * share(i, j) for i in range(j, len(nodes))) for j in range(len(nodes))]


@dataclass(frozen=True)
class Forecast:
    """Reuse: F_0, as it is. The others override both.

    history: how many features of earlier refreshes are needed beside F_0. While there are fewer, the order is lower.
    """

    needs_probe: ClassVar[bool] = False
    """Whether full calls store the skip tensor of the cut beside the feature."""

    @property
    def history(self) -> int:
        return 0

    def feature(self, cache: FeatureCache, step: Step, probe: Tensor | None) -> Tensor:
        """F [B, C, h, w] for a cached call at ``step``. probe: the skip tensor of the cut in this call, [B, C', h, w], where it is
        needed.

        An image's feature depends on this image alone.
        """
        return cache.feature


REUSE = Forecast()


@dataclass(frozen=True)
class Extrapolated(Forecast):
    """sum_j w_j F_j, see `weights`. clock: u of each sampling step; None: u is its index. order: m.

    Of stored features whose clocks are equal (repeated timesteps) the newest is taken. Raises `ConfigError` for a step without a
    clock.
    """

    basis: Basis = taylor
    order: int = 1
    clock: tuple[float, ...] | None = None

    @property
    def history(self) -> int:
        return self.order

    def feature(self, cache: FeatureCache, step: Step, probe: Tensor | None) -> Tensor:
        stored = cache.stored
        if all(one.refreshed is None for one in stored):
            used = self._weights([one.step.index for one in stored], step.index)
            return combined(list(used.values()), [stored[j].feature for j in used])
        images = [self._weights([one.index_of(b) for one in stored], step.index) for b in range(len(cache.feature))]
        table = torch.tensor([[of.get(j, 0.0) for of in images] for j in range(len(stored))], dtype=torch.float64)
        shape = (len(stored), -1, *[1] * (cache.feature.ndim - 1))
        return combined(list(table.to(cache.feature.device).view(shape)), [one.feature for one in stored])

    def _weights(self, indices: Sequence[int], i: int) -> dict[int, float]:
        """Of the stored features that a call at step i uses, by their place; ``indices`` of their steps, the newest first."""
        nodes = {0: self._time(indices[0])}
        for j, index in enumerate(indices):
            if (u := self._time(index)) < min(nodes.values()):
                nodes[j] = u
        return dict(zip(nodes, weights(self.basis, list(nodes.values()), self._time(i)), strict=True))

    def _time(self, index: int) -> float:
        if self.clock is None:
            return index
        if index >= len(self.clock):
            raise ConfigError(
                f"Sampling step {index} has no clock; the forecast was made for {len(self.clock)} steps. Prepare the "
                "technique for the timetable that is sampled."
            )
        return self.clock[index]


@dataclass(frozen=True)
class Probed(Forecast):
    """F_1 + gamma (F_0 - F_1),   gamma = |p - p_1| / |p_0 - p_1|, clipped to [1, clip],   |.| the L1 norm of one image

    p is a tensor that cached calls compute anyway and that moves as F does: here the skip tensor of the cut, of this call, and of
    the last two refreshes. gamma takes the place of a clock. (In DiCache p is the change of a transformer's first blocks, and the
    norm is over the batch, so that an image there depends on its batch-mates.) An image whose probe did not move between the
    refreshes has gamma = 1, which is reuse.
    """

    needs_probe: ClassVar[bool] = True
    clip: float = 1.5

    @property
    def history(self) -> int:
        return 1

    def feature(self, cache: FeatureCache, step: Step, probe: Tensor | None) -> Tensor:
        if not cache.earlier:
            return cache.feature
        newer, older = cache, cache.earlier[0]
        if probe is None or newer.probe is None or older.probe is None:
            raise ConfigError("A stored feature has no probe. Use features of the network that forecasts from them.")
        moved, gap = _distance(probe, older.probe), _distance(newer.probe, older.probe)
        gamma = torch.where(gap > 0, moved / gap, 1.0).clamp(1.0, self.clip).view(-1, *[1] * (newer.feature.ndim - 1))
        return combined([gamma, 1 - gamma], [newer.feature, older.feature])


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of each image, float64 [B]."""
    return (a - b).abs().flatten(1).sum(dim=1, dtype=torch.float64)


def combined(weights: Sequence[float | Tensor], features: Sequence[Tensor]) -> Tensor:
    """sum_j w_j F_j in the dtype of the features [B, ...], computed in float32 at least. w_j: a number, or [B, 1, ..].

    One feature is given back as it is.
    """
    if len(features) == 1:
        return features[0]
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    terms = [(w.to(dtype) if isinstance(w, Tensor) else w) * f.to(dtype) for w, f in zip(weights, features, strict=True)]
    return sum(terms[1:], terms[0]).to(features[0].dtype)
