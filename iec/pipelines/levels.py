"""Corrected Euler steps from one noise level to the next."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.pipelines.corrected import Corrected


class Levels(Corrected):
    """For schedulers of diffusers that keep a noise level for every step and the final one, ``sigmas`` [T + 1]. Like ``timesteps``,
    they are repeated for corrected steps, and paired with them by position.
    """

    sigmas: Tensor
    begin_index: Any

    def lay_out_levels(self, *, clean: bool, listed: bool) -> None:
        """See `lay_out`. clean: whether the last step ends at the clean image."""
        levels = self.sigmas
        last = len(levels) - 2
        still: Collection[int] = [i for i in range(last + 1) if levels[i] == levels[i + 1]]
        entries = self.lay_out(still, [last] if clean else (), listed=listed)
        self.sigmas = torch.cat([levels[entries], levels[-1:]])

    def set_begin_index(self, begin_index: int = 0) -> None:
        """See `Corrected.set_begin_index`."""
        super().set_begin_index(begin_index)
        self._begin_index = begin_index

    def levels(self, i: int) -> tuple[Tensor, Tensor]:
        """Where step i begins and ends."""
        return self.sigmas[self.run.first_call(i)], self.sigmas[self.run.first_call(i + 1)]

    def beginnings(self) -> np.ndarray:
        """The level where every step of the run begins, float64 [T]."""
        entries = [self.run.first_call(i) for i in range(len(self.run.timesteps))]
        return self.sigmas[entries].double().cpu().numpy()

    @property
    def step_index(self) -> int | None:
        """The entry at whose noise level the state is, None before a run: between the calls of a step that is the first entry of
        the next one. Everything that asks for the level of the state, within diffusers too, asks here.
        """
        if self.position is None or self.position == len(self.run.calls):
            return self.position
        i, k = self.run.calls[self.position]
        return self.position if k == 0 else self.run.first_call(i + 1)

    @property
    def _step_index(self) -> int | None:
        """diffusers' counter. Raises `ConfigError` if a pipeline sets it (LEDITS++, Cosmos 1), which would mean another step."""
        return self.step_index

    @_step_index.setter
    def _step_index(self, value: int | None) -> None:
        if value is not None:
            raise ConfigError(
                "This pipeline moves the step index of its scheduler by itself, and would land in the middle of a corrected step. "
                "Give it the scheduler of diffusers back."
            )

    def level_of(self, sample: Tensor, timesteps: Tensor) -> Tensor:
        """The level that ``sample`` [B, ..] gets noise for, [B, 1, ..]. As in diffusers, once a pipeline has said where it begins
        it is that of the state, and else that of the timesteps; t then stands for s between the calls of a step.
        """
        begun = self.begin_index is not None
        entries = [self.step_index if begun else self._entry(float(t)) for t in timesteps]
        sigma = self.sigmas.to(device=sample.device, dtype=sample.dtype)[entries]
        return sigma.view(-1, *[1] * (sample.ndim - 1))

    def _entry(self, t: float) -> int | None:
        if self.pending is not None and self.run.timesteps[self.run.calls[self.position or 0][0]] == t:
            return self.step_index
        return self.index_for_timestep(t)

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The first entry with this timestep. (diffusers takes the second one if there is one, as Heun's list wants it.)"""
        entries = self._timesteps if schedule_timesteps is None else schedule_timesteps
        return int((entries == timestep).nonzero()[0])

    def _init_step_index(self, timestep: float | Tensor) -> None:
        """Called by diffusers' scale_model_input before the first step."""
        self.next_call(timestep)
