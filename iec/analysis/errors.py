"""The error of an efficient sampler against the full-precision run from the same noise, step by step (paper, Fig. 2).

Phi_i is step i of the efficient sampler, corrections included, as a map of the state and of the cached feature. x_i are its states,
r_i those of the full-precision run. The error of a step splits into what this step adds and what it inherits:

    x_{i+1} - r_{i+1} = [Phi_i(x_i, c_i) - Phi_i(r_i, c'_i)] + [Phi_i(r_i, c'_i) - r_{i+1}] = carried over + made here

c_i is the feature that the run has at step i, and c'_i the one it would have had if all states before had been r: so nothing is
carried over where no error was made before, and what caching does to correct states counts as made where the feature is used.
For a quantized network the first part is more than a Jacobian's: states that are near each other are rounded differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iec.analysis.setup import Setup, columns
from iec.analysis.state import Arrays
from iec.sampling.correction import sizes
from iec.sampling.ddim import Sampler

RESOLUTION = 1e-6
"""Relative errors below this are rounding, and nothing is divided by them."""


@dataclass(frozen=True)
class Errors:
    """float64, image by image. total [N, T + 1]: |x_i - r_i| / |r_i|. made, carried [N, T]: the norms of the two parts at the end
    of step i, relative to |r_{i+1}|. growth [N, T]: |carried over| / |x_i - r_i|, not relative; nan where there was no error
    before, and at steps that change nothing. effective: the steps that change something.
    """

    total: np.ndarray
    made: np.ndarray
    carried: np.ndarray
    growth: np.ndarray
    effective: tuple[int, ...]

    @classmethod
    def of(cls, arrays: Arrays) -> "Errors":
        """From its fields as arrays."""
        effective = tuple(int(i) for i in arrays["effective"])
        return cls(arrays["total"], arrays["made"], arrays["carried"], arrays["growth"], effective)

    @classmethod
    def joined(cls, parts: Sequence["Errors"]) -> "Errors":
        """Of the images of several batches."""
        total, made, carried, growth = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("total", "made", "carried", "growth")
        )
        return cls(total, made, carried, growth, parts[0].effective)


@torch.no_grad()
def errors(setup: Setup, sampler: Sampler, seed: int, indices: Sequence[int], reference: Sequence[Tensor] | None = None) -> Errors:
    """Of ``sampler`` on the setup's network. reference: the full-precision states, if they are at hand (`Setup.reference_states`).

    Costs every step twice, once from either state. Raises `NonFiniteError`.
    """
    states = setup.reference_states(seed, indices) if reference is None else reference
    noise, cond, table = setup.noise(seed, indices), setup.conditioning(indices), sampler.timetable
    x, cache, taught = states[0], None, None
    total, made, carried, growth = [torch.zeros(len(x), dtype=x.dtype, device=x.device)], [], [], []
    for i in range(len(table)):
        before, size = sizes(x - states[i]), sizes(states[i + 1])
        x, cache = sampler.step(setup.network, i, x, noise, cond, cache)
        right, taught = sampler.step(setup.network, i, states[i], noise, cond, taught)
        inherited = sizes(x - right)
        total.append(sizes(x - states[i + 1]) / size)
        made.append(sizes(right - states[i + 1]) / size)
        carried.append(inherited / size)
        known = (before > RESOLUTION * sizes(states[i])) & (not table.is_noop(i))
        growth.append(torch.where(known, inherited / before, torch.nan))
    effective = tuple(i for i in range(len(table)) if not table.is_noop(i))
    return Errors(columns(total), columns(made), columns(carried), columns(growth), effective)
