"""The sampling loop: DDIM over an explicit timetable, with corrections inside the step."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.correction import Correction, Rows, refine, replace_rows
from iec.sampling.network import FeatureCache, Mode, Network, Step, require_finite
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.refresh import explicit
from iec.sampling.timetable import CLEAN, Timetable


@dataclass(frozen=True)
class Sampler:
    """Everything about a run but the network and the noise.

    refresh: the steps that run the full network and refresh the cached feature; None: every step is full, nothing is cached.
    epsilon_scale: the predicted noise is divided by it (arXiv 2308.15321, a control that costs nothing).
    dtype: of the solver's arithmetic and of the states it yields; the network works in its own.
    """

    timetable: Timetable
    correction: Correction = field(default_factory=Correction)
    placement: Placement = field(default_factory=Placement)
    refresh: frozenset[int] | None = None
    epsilon_scale: float = 1.0
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if not 0.5 <= self.epsilon_scale <= 2:
            raise ConfigError(f"iec.epsilon_scale={self.epsilon_scale} is outside [0.5, 2]; 1 changes nothing.")
        if self.refresh is not None:
            explicit(len(self.timetable), self.refresh)  # raises for steps that cannot be
        _ = self.corrected  # refuse a placement that does not fit before anything is computed

    @cached_property
    def corrected(self) -> frozenset[int]:
        """The steps that are corrected: the placement's, less the no-ops and (Heun) the step to the clean image."""
        pairs = self.timetable.pairs
        steps = self.placement.resolve(len(pairs), self.refresh) if self.correction.iterations else frozenset()
        heun = self.correction.evaluate_at == "s"
        return frozenset(i for i in steps if not self.timetable.is_noop(i) and not (heun and pairs[i][1] == CLEAN))

    def trajectory(
        self, network: Network, noise: Noise, cond: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Yields the T + 1 states x_T, ..., x_0 of a batch, [B, C, H, W] in the solver's dtype on ``device``.

        State i is the network's input at sampling index i; the last one is the result. Raises `NonFiniteError`.
        """
        x = noise.initial(self.dtype, device)
        cache: FeatureCache | None = None
        yield x
        for i in range(len(self.timetable)):
            x, cache = self.step(network, i, x, noise, cond, cache)
            yield x

    @torch.no_grad()
    def step(
        self, network: Network, i: int, x: Tensor, noise: Noise, cond: Tensor | None, cache: FeatureCache | None
    ) -> tuple[Tensor, FeatureCache | None]:
        """x_s and the cache after step i. A no-op costs no call, unless it has to refresh the cache."""
        table, mode = self.timetable, self._mode(i)
        if table.is_noop(i) and (self.refresh is None or mode == "cached"):
            return x, cache
        t, s = table.pairs[i]
        fixed = float(table.A[i]) * x  # all of the update that the network has no part in
        if table.sigma[i] > 0:
            fixed = fixed + float(table.sigma[i]) * noise.of_step(i, x.dtype, x.device)
        scale = float(table.B[i]) / self.epsilon_scale

        def evaluate(y: Tensor, step: Step, rows: Rows) -> tuple[Tensor, Tensor | None]:
            prediction = network(y, step, _take(cond, rows), _take_cache(cache, rows))
            g = fixed[rows] + scale * prediction.eps.to(fixed.dtype)
            require_finite(g, step)
            return g, prediction.feature

        ordinary = Step(i, t, mode)
        y, feature = evaluate(x, ordinary, slice(None))
        if i in self.corrected:

            def target(y: Tensor, k: int, rows: Rows) -> Tensor:
                nonlocal feature
                at = t if self.correction.evaluate_at == "t" else s
                again = "full" if self.placement.cached_steps == "full" else mode
                g, newer = evaluate(y, replace(ordinary, timestep=at, mode=again, correction=k), rows)
                if newer is not None and self.correction.cache_from == "last":
                    feature = newer if isinstance(rows, slice) else replace_rows(_old(feature, cache), rows, newer)
                return g

            y = refine(y, target, self.correction)
        return y, cache if feature is None else FeatureCache(feature, ordinary)

    def _mode(self, i: int) -> Mode:
        return "full" if self.refresh is None or i in self.refresh else "cached"


def _old(feature: Tensor | None, cache: FeatureCache | None) -> Tensor:
    """The feature that some rows of are replaced: this step's, or (at a cached step) the one that it reused."""
    if feature is None and cache is not None:
        return cache.feature
    assert feature is not None  # a network that gives a feature in a correction gave one, or had one, before
    return feature


def _take(value: Tensor | None, rows: Rows) -> Tensor | None:
    return None if value is None else value[rows]


def _take_cache(cache: FeatureCache | None, rows: Rows) -> FeatureCache | None:
    return None if cache is None else FeatureCache(cache.feature[rows], cache.step)
