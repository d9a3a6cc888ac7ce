"""What every solver is to its callers: a timetable, refresh steps, and a trajectory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from iec.sampling.correction import Correction
from iec.sampling.corrector import Corrector
from iec.sampling.network import Mode, Network
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.refresh import explicit
from iec.sampling.timetable import Timetable


class Solver(ABC):
    """Everything about a run but the network and the noise: a frozen dataclass, `Sampler` (DDIM) or `MultistepSampler`.

    solver: its name. refresh: the steps that run the full network and refresh the cached feature; None: every step is full,
    nothing is cached. dtype: of the solver's arithmetic and of the states it yields; the network works in its own.
    correction, placement, epsilon_scale, corrector: see `Sampler`.
    """

    solver: str
    timetable: Timetable
    refresh: frozenset[int] | None
    dtype: torch.dtype
    correction: Correction
    placement: Placement
    epsilon_scale: float
    corrector: Corrector

    def __post_init__(self) -> None:
        if self.refresh is not None:
            explicit(len(self.timetable), self.refresh)  # raises for steps that cannot be

    @abstractmethod
    def trajectory(
        self, network: Network, noise: Noise, cond: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Yields the T + 1 states x_T, ..., x_0 of a batch, [B, C, H, W] in the solver's dtype on ``device``.

        State i is the network's input at sampling index i; the last one is the result. Raises `NonFiniteError`.
        """

    @property
    def corrected(self) -> frozenset[int]:
        """The steps that are corrected: none, but with DDIM."""
        return frozenset()

    def mode(self, i: int) -> Mode:
        """How step i calls the network."""
        return "full" if self.refresh is None or i in self.refresh else "cached"

    @property
    def full_at_cached_steps(self) -> bool:
        """Whether corrections make full calls at steps whose own call is cached (``placement.cached_steps`` is ``full``)."""
        return self.placement.cached_steps == "full" and any(self.mode(i) == "cached" for i in self.corrected)

    def makes_no_call(self, i: int) -> bool:
        """Whether step i is left out: it changes nothing (t = s), and has no cache to refresh."""
        return self.timetable.is_noop(i) and (self.refresh is None or self.mode(i) == "cached")

    def refreshed_at(self, refresh: frozenset[int]) -> Self:
        """The same with these refresh steps. Raises `ConfigError` for steps that cannot be."""
        return replace(self, refresh=refresh)  # type: ignore[type-var]  # every solver is a dataclass
