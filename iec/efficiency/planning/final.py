"""The objective that is not additive: how far the images end from those of the uncached run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from iec.efficiency.planning.space import Choice
from iec.sampling.correction import sizes
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork, FeatureCache, Network
from iec.sampling.noise import Noise

KEPT = 2
"""Trajectories that later ones may begin with: of the choice that a search is at, and of the last one it tried."""


@dataclass(frozen=True)
class Batch:
    """Images to plan on: their noise and conditioning, and where the uncached run ends, [B, C, H, W]."""

    noise: Noise
    cond: Tensor | None
    reference: Tensor

    @classmethod
    def of(cls, network: Network, sampler: Sampler, noise: Noise, cond: Tensor | None, device: torch.device | str) -> "Batch":
        """sampler, network: of the uncached run."""
        *_, reference = sampler.trajectory(network, noise, cond, device)
        return cls(noise, cond, reference)


@dataclass(frozen=True)
class _Path:
    """entered: the state and the cache with which each batch enters each refresh step."""

    choice: Choice
    entered: dict[int, list[tuple[Tensor, FeatureCache | None]]]


@dataclass
class FinalError:
    """Mean over images of |x_0 - r_0| / |r_0|, with r_0 of the uncached run.

    network: counts what is spent. sampler_of: the DDIM sampler of a choice. A choice that begins like one of the last is run from
    the last refresh step that they share: the value is the same bit for bit, for fewer calls.
    """

    network: CountingNetwork
    sampler_of: Callable[[Choice], Sampler]
    batches: Sequence[Batch]
    device: torch.device | str = "cpu"
    kept: list[_Path] = field(default_factory=list, init=False)

    def __call__(self, choice: Choice) -> float:
        sampler = self.sampler_of(choice)
        begin, entered = self._shared(choice, len(sampler.timetable))
        path, errors = _Path(choice, {i: parts for i, parts in entered.items() if i < begin}), []
        for k, batch in enumerate(self.batches):
            x, cache = entered[begin][k] if begin else (batch.noise.initial(sampler.dtype, self.device), None)
            for i in range(begin, len(sampler.timetable)):
                if i in choice.refresh:
                    path.entered.setdefault(i, []).append((x, cache))
                x, cache = sampler.step(self.network, i, x, batch.noise, batch.cond, cache)
            errors.append(sizes(x - batch.reference) / sizes(batch.reference))
        self.kept = [path, *self.kept][:KEPT]
        return float(torch.cat(errors).double().mean())

    def _shared(self, choice: Choice, steps: int) -> tuple[int, dict[int, list[tuple[Tensor, FeatureCache | None]]]]:
        """The refresh step to begin at, and what enters those up to it, of the kept trajectory that leads furthest."""
        begin, best = 0, None
        for path in self.kept:
            until = path.choice.first_difference(choice, steps - 1)
            shared = max(i for i in path.choice.refresh & choice.refresh if i <= until)
            if shared > begin:
                begin, best = shared, path
        if best is None:
            return 0, {}
        self.kept = [best, *(path for path in self.kept if path is not best)]  # the next choice is likely to begin like it, too
        return begin, best.entered
