"""Will a correction pay? Four numbers measured on a few images, each in dB and above 0 where it says yes.

With b_i, u_i, w_i and m of `iec.analysis.walk`, for each image:

| name              | formula                                     | it asks                                                     |
|-------------------|---------------------------------------------|-------------------------------------------------------------|
| `pilot`           | 20 log10( |x_0 - r_0| / |x'_0 - r_0| )      | nothing: it is the outcome, on these few images             |
| `propagated`      | 20 log10( |sum e_i| / |sum (e_i + v_i)| )   | is less of the errors left in the image that they end in?   |
| `one_step`        | 10 log10( sum |b_i|^2 / sum |b_i + u_i|^2 ) | do the errors of single steps shrink?                       |
| `error_over_bias` | 20 log10( sum |b_i| / sum |w_i| )           | is the error larger than what the correction does alone?    |

e_i, v_i: `clean_error` and `clean_displacement`, the changes of m by the error and by the displacement. `propagated` is the change
of the final PSNR to first order: the errors of all steps are carried to the clean image, where they add up as vectors. So those
that look like noise are forgotten, and those of one direction accumulate. x_0, x'_0 and r_0 are the final states of the efficient
run without and with corrections, and of the full-precision one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from iec.analysis.errors import RESOLUTION
from iec.analysis.setup import Setup, columns
from iec.analysis.state import Arrays
from iec.analysis.suggest import final_errors
from iec.analysis.walk import LocalStep, Once, walk
from iec.errors import ConfigError
from iec.sampling.correction import sizes
from iec.sampling.network import Calls, CountingNetwork
from iec.sampling.solver import Solver

SEED = 2**44
"""Of the images that are measured: far from the seeds of images, and from those of calibrations and suggestions."""
PREDICTORS = ("pilot", "propagated", "one_step", "error_over_bias")


@dataclass(frozen=True)
class Payoff:
    """float64. steps: sampling indices, [S]. error, displacement, bias: |b_i|, |u_i| and |w_i|, [N, S]. removed: the share of the
    error that the displacement takes away, -<b_i, u_i> / <b_i, b_i>, [N, S]. norm_ratio: |eps(x^(0), t)| / |eps(x_i, t)|, [N, S].
    made, taken: the shares of the sum e of all e_i that step i makes, <e_i, e> / <e, e>, and that its correction takes away,
    -<v_i, e> / <e, e>, [N, S]. bias and norm_ratio are nan at steps that are not corrected, removed where there is no error.
    pilot, propagated, one_step, error_over_bias: see the module, [N]. walk_calls: of all but the pilot, in images, [4]: full,
    cached, corrections, full precision. pilot_calls: of the pilot.
    """

    steps: np.ndarray
    error: np.ndarray
    displacement: np.ndarray
    bias: np.ndarray
    removed: np.ndarray
    norm_ratio: np.ndarray
    made: np.ndarray
    taken: np.ndarray
    propagated: np.ndarray
    one_step: np.ndarray
    error_over_bias: np.ndarray
    pilot: np.ndarray
    walk_calls: np.ndarray
    pilot_calls: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Arrays]) -> "Payoff":
        """Of the images of several batches, each the fields as arrays."""
        calls = {name: np.sum([part[name] for part in parts], axis=0) for name in ("walk_calls", "pilot_calls")}
        images = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name not in (*calls, "steps")}
        return cls(parts[0]["steps"], **images, **calls)


def measure(setup: Setup, seed: int, indices: Sequence[int]) -> Payoff:
    """For the corrections of ``setup.corrected``. Raises `ConfigError` where an image has no error that could be corrected, and
    what `require_measurable` raises.
    """
    require_measurable(setup.corrected)
    network, reference = Once(setup.network), Once(setup.reference)
    steps = list[int]()
    found: dict[str, list[Tensor]] = {name: [] for name in ("error", "displacement", "bias", "removed", "norm_ratio")}
    left, errors, displacements = list[Tensor](), list[Tensor](), list[Tensor]()
    for step in walk(setup, seed, indices, network, reference):
        steps.append(step.index)
        for name, value in _numbers(step).items():
            found[name].append(value)
        left.append(sizes(step.error + step.displacement))
        errors.append(step.clean_error)
        displacements.append(step.clean_displacement)
    parts = {name: columns(values) for name, values in found.items()}
    total, change = torch.stack(errors).sum(0), torch.stack(displacements).sum(0)
    squares = [np.square(value).sum(axis=1) for value in (parts["error"], columns(left))]
    of_pilot, right = CountingNetwork(setup.network), CountingNetwork(setup.reference)
    outcome = final_errors(replace(setup, network=of_pilot, reference=right), [setup.plain, setup.corrected], seed, indices)
    payoff = Payoff(
        steps=np.array(steps),
        **parts,
        made=_shares(errors, total),
        taken=-_shares(displacements, total),
        propagated=decibels(*columns([sizes(total), sizes(total + change)]).T),
        one_step=decibels(*np.sqrt(squares)),
        error_over_bias=decibels(parts["error"].sum(axis=1), np.nansum(parts["bias"], axis=1)),
        pilot=decibels(*outcome),
        walk_calls=_calls(network.calls, reference.calls),
        pilot_calls=_calls(of_pilot.calls, right.calls),
    )
    if not all(np.isfinite(getattr(payoff, name)).all() for name in PREDICTORS):
        raise ConfigError("An image has no error, so that there is nothing to correct. Use a coarser technique.")
    return payoff


def require_measurable(sampler: Solver) -> None:
    """Raises `ConfigError` for corrections that cannot be measured, before anything is computed."""
    if not sampler.corrector.keeps_timesteps:
        raise ConfigError(
            f"{type(sampler.corrector).__name__} tells each image its own timestep, and what is measured are calls that all "
            "images of a batch make alike. Use corrector=none, or another one."
        )
    if sampler.corrected and not any(sampler.correction.lambdas):
        raise ConfigError("iec.lambda=0 moves no state, and how far states are moved is measured. Use a lambda above 0.")


def _numbers(step: LocalStep) -> dict[str, Tensor]:
    """The columns of one step, [B] each."""
    error, nothing = sizes(step.error), torch.full_like(step.size, torch.nan)
    product = (step.error * step.displacement).flatten(1).sum(dim=1)
    return {
        "error": error,
        "displacement": sizes(step.displacement),
        "bias": nothing if step.bias is None else sizes(step.bias),
        "removed": torch.where(error > RESOLUTION * step.size, -product / error.square(), torch.nan),
        "norm_ratio": nothing if step.norm_ratio is None else step.norm_ratio.to(nothing.dtype),
    }


def _shares(parts: Sequence[Tensor], total: Tensor) -> np.ndarray:
    """<part, total> / <total, total> of each image, [N, S]."""
    return columns([(part * total).flatten(1).sum(dim=1) / sizes(total).square() for part in parts])


def decibels(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """20 log10(before / after) of norms [N]; infinite or nan where one is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(20 * np.log10(before / after))


def _calls(network: Calls, reference: Calls) -> np.ndarray:
    """Full, cached, corrections, full precision."""
    total = network.correction + network.cached_correction
    return np.array([network.full, network.cached, total, reference.total])
