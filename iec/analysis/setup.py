"""What is analysed: an efficient sampler beside the full-precision run that it stands in for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from iec.models import Model
from iec.sampling.correction import Correction, sizes
from iec.sampling.ddim import Sampler
from iec.sampling.network import Network
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement


def no_conditioning(indices: Sequence[int]) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Setup:
    """An efficient ``network`` with its ``sampler``, and the full-precision ``reference``; both with the model's guidance.

    shape: (C, H, W) of a state. conditioning: image indices -> cond, one row an image.
    """

    reference: Network
    network: Network
    sampler: Sampler
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"
    conditioning: Callable[[Sequence[int]], Tensor | None] = no_conditioning

    @classmethod
    def of(cls, model: Model, network: Network, sampler: Sampler) -> "Setup":
        """network: of single branches, without guidance, e.g. what a technique prepared (`iec.Prepared.network`)."""
        return cls(model.guided(model.network), model.guided(network), sampler, model.card.shape, model.device, model.cond)

    @property
    def plain(self) -> Sampler:
        """The sampler without corrections."""
        return replace(self.sampler, placement=Placement(cached_steps=self.sampler.placement.cached_steps))

    @property
    def corrected(self) -> Sampler:
        """The sampler with its corrections; with the paper's (all steps that run the full network, lambda 0.5) if it has none."""
        if self.sampler.corrected:
            return self.sampler
        return replace(self.sampler, correction=Correction(), placement=Placement("all_steps"))

    @property
    def full_precision(self) -> Sampler:
        """The sampler of the reference: the same timetable, every step full, nothing corrected or scaled."""
        return Sampler(self.sampler.timetable, dtype=self.sampler.dtype)

    def noise(self, seed: int, indices: Sequence[int]) -> Noise:
        return Noise(seed, tuple(indices), self.shape)

    def reference_states(self, seed: int, indices: Sequence[int]) -> list[Tensor]:
        """The T + 1 states of the full-precision run, [B, C, H, W] each."""
        noise, cond = self.noise(seed, indices), self.conditioning(indices)
        return list(self.full_precision.trajectory(self.reference, noise, cond, self.device))


def columns(values: Sequence[Tensor]) -> np.ndarray:
    """S tensors [B] as float64 [B, S]."""
    return torch.stack(list(values), 1).double().cpu().numpy()


@torch.no_grad()
def final_errors(setup: Setup, samplers: Sequence[Sampler], seed: int, indices: Sequence[int]) -> list[np.ndarray]:
    """|x_0 - r_0| / |r_0| of each sampler, float64 [N]."""
    noise, cond = setup.noise(seed, indices), setup.conditioning(indices)
    reference = setup.reference_states(seed, indices)[-1]
    found = []
    for sampler in samplers:
        *_, x = sampler.trajectory(setup.network, noise, cond, setup.device)
        found.append((sizes(x - reference) / sizes(reference)).double().cpu().numpy())
    return found
