"""Which steps and which lambda pay most per network call, for one model, technique and sampler.

To first order, the deviation of the final state from the full-precision one is affine in lambda and additive in the corrected
steps S:

    D(S, lambda) = D + sum over i in S of (F_i + lambda R_i)

D: without corrections. R_i: what the change of x_{i+1} by target - x^(0) grows into. F_i: what becomes of the feature that the
second call leaves in the cache, whatever lambda is; zero without a cache. Each step is probed by finishing the trajectory from it
with lambda = 0 (F_i; only with a cache) and `PROBE`. Then, for every lambda of the grid, steps are added one by one, each time the
one that lowers the predicted squared error most, while the 95 % interval of its mean gain over images lies above zero. The
prediction only chooses: what was chosen is run for real, and given up if that is no better than no correction.

The final state is asked for, and not the next one: a correction that helps its own step can do harm through the cache and through
what later steps make of it. The grid has no negative lambda: `iec.lambda` allows none, because 1 - lambda > 1 would turn the
damping of the iteration into its opposite. `Responses.best` is the least squares lambda of either sign, so that a step which the
correction moves the wrong way shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from iec.analysis.setup import Setup, final_errors
from iec.analysis.state import NOTHING_KEPT, Arrays, State
from iec.efficiency.technique import Prepared
from iec.errors import ConfigError
from iec.io.markdown import markdown_table
from iec.io.progress import stage
from iec.metrics.interval import Interval, mean_interval
from iec.models import Model
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Network
from iec.sampling.placement import Placement

GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
PROBE = 0.5
SEED = 2**41
"""Far from the seeds of images, and from that of calibrations."""


@dataclass(frozen=True)
class Responses:
    """steps [S]; base [N, d], offset and slope [S, N, d]: D, F_i and R_i, relative to the norm of each image's reference."""

    steps: tuple[int, ...]
    base: np.ndarray
    offset: np.ndarray
    slope: np.ndarray

    def at(self, lam: float) -> np.ndarray:
        """F_i + lambda R_i, [S, N, d]."""
        return self.offset + lam * self.slope

    def gains(self, lam: float) -> np.ndarray:
        """Predicted fall of the mean squared error by each step alone, relative to it without corrections: [S]."""
        before = np.square(self.base).sum(-1).mean()
        return 1 - np.square(self.base + self.at(lam)).sum(-1).mean(-1) / before

    @cached_property
    def best(self) -> np.ndarray:
        """The lambda that each step alone would want, of either sign: [S]."""
        return -np.einsum("snd,snd->s", self.base + self.offset, self.slope) / np.square(self.slope).sum((1, 2)).clip(1e-300)


@dataclass(frozen=True)
class Suggestion:
    """steps: sampling indices, in the order in which they were added; none if nothing was better than no correction. lam: lambda.

    predicted: relative change of the mean squared final error by the first-order model; measured: relative change of the mean final
    error on the calibration images when it is run. considered: the steps, as the greedy search left them, before they were run.
    """

    sampler: Sampler
    steps: tuple[int, ...]
    lam: float
    predicted: float
    measured: Interval
    responses: Responses
    considered: tuple[int, ...]

    @property
    def suggested(self) -> Sampler:
        """The sampler with the corrections that are suggested."""
        return with_steps(self.sampler, self.steps, self.lam)

    @property
    def overrides(self) -> str:
        """For ``iec run``."""
        if not self.steps:
            return "iec=none"
        words = [f"iec.steps=[{','.join(str(i) for i in sorted(self.steps))}]", f"iec.lambda={self.lam:g}"]
        correction, placement, usual = self.sampler.correction, self.sampler.placement, Correction()
        for name in ("cache_from", "evaluate_at"):
            if getattr(correction, name) != getattr(usual, name):
                words.append(f"iec.{name}={getattr(correction, name)}")
        if placement.cached_steps != "skip":
            words.append(f"iec.cached_steps={placement.cached_steps}")
        return " ".join(["iec=all_steps", "iec.placement=explicit", *words])

    def table(self, grid: Sequence[float] = GRID) -> str:
        """Markdown: the steps, those that pay most by themselves first."""
        gains = {lam: self.responses.gains(lam) for lam in grid}
        order = np.argsort(-np.max(list(gains.values()), axis=0))
        body = []
        for k in order:
            i = self.responses.steps[k]
            chosen = str(self.steps.index(i) + 1) if i in self.steps else ""
            wanted, of_grid = f"{self.responses.best[k]:.2f}", [f"{100 * gains[lam][k]:+.2f}" for lam in grid]
            body.append([str(i), str(self.sampler.timetable.pairs[i][0]), wanted, *of_grid, chosen])
        return markdown_table(["step", "t", "wanted lambda", *(f"gain, lambda = {lam:g} (%)" for lam in grid), "chosen"], body)


def suggest(
    model: Model,
    network: Network | Prepared,
    sampler: Sampler,
    *,
    images: int = 8,
    lambdas: Sequence[float] = GRID,
    budget: int | None = None,
    seed: int = SEED,
) -> Suggestion:
    """For what a technique prepared, or a network without guidance alone; see `suggest_for`. Refresh steps that a technique's
    ``prepare`` found replace the sampler's.
    """
    if isinstance(network, Prepared):
        if network.refresh is not None:
            sampler = replace(sampler, refresh=network.refresh)
        network = network.network
    return suggest_for(Setup.of(model, network, sampler), images=images, lambdas=lambdas, budget=budget, seed=seed)


def suggest_for(
    setup: Setup,
    *,
    images: int = 8,
    lambdas: Sequence[float] = GRID,
    budget: int | None = None,
    seed: int = SEED,
    state: State = NOTHING_KEPT,
) -> Suggestion:
    """The steps of which a correction is worth its call, and their lambda, from ``images`` calibration images of ``seed``.

    budget: at most so many corrections an image; None: all that pay. Of ``sampler.correction``, ``cache_from`` and ``evaluate_at``
    are kept; K is 1. Steps that reuse a feature are considered only if ``placement.cached_steps`` is not ``skip``, and the one
    that ends at the clean image only if ``placement.last_step`` is not. Costs about half a trajectory of each image for each step
    that could be corrected, twice that with a cache. Raises `ConfigError`.
    """
    steps = require_suggestible(setup.sampler, images, lambdas, budget)
    responses = probe(setup, steps, seed, range(images), state)
    found = [(*greedy(responses, lam, len(steps) if budget is None else budget), lam) for lam in lambdas]
    chosen, predicted, lam = min(found, key=lambda one: one[1])
    final = final_errors(setup, [setup.plain, with_steps(setup.sampler, chosen, lam)], seed, range(images))
    measured = relative_change(*final)
    kept = chosen if measured.high < 0 else ()
    return Suggestion(setup.sampler, kept, lam, predicted, measured, responses, chosen)


def require_suggestible(sampler: Sampler, images: int, lambdas: Sequence[float], budget: int | None) -> tuple[int, ...]:
    """The steps that could be corrected. Raises `ConfigError` where there are none, and for what `suggest_for` cannot take."""
    steps = eligible(sampler)
    require_lambdas(lambdas)
    if images < 2 or (budget is not None and budget < 1):
        raise ConfigError("A suggestion needs 2 images or more, and a budget of 1 call or more, or none.")
    if not steps:
        raise ConfigError("This sampler has no step that could be corrected; use another timetable.")
    return steps


def require_lambdas(grid: Sequence[float]) -> None:
    """Raises `ConfigError` for a grid with a lambda that cannot be run, or with none."""
    if any(not 0 < lam <= 2 for lam in grid) or not grid:
        raise ConfigError(f"The grid of lambda, {list(grid)}, needs values in (0, 2]; negative ones cannot be run.")


def eligible(sampler: Sampler) -> tuple[int, ...]:
    """The steps that could be corrected, in order."""
    everywhere = replace(sampler.placement, kind="all_steps", fraction=None, count=None, steps=())
    return tuple(sorted(replace(sampler, correction=_one(sampler, PROBE), placement=everywhere).corrected))


def with_steps(sampler: Sampler, steps: Sequence[int], lam: float) -> Sampler:
    """The sampler with one correction of weight ``lam`` at each of ``steps`` and nowhere else."""
    cached = sampler.placement.cached_steps
    placement = Placement("explicit", steps=tuple(sorted(steps)), cached_steps=cached) if steps else Placement(cached_steps=cached)
    return replace(sampler, correction=_one(sampler, lam), placement=placement)


def _one(sampler: Sampler, lam: float) -> Correction:
    return Correction(1, (lam,), cache_from=sampler.correction.cache_from, evaluate_at=sampler.correction.evaluate_at)


def probe(setup: Setup, steps: Sequence[int], seed: int, indices: Sequence[int], state: State = NOTHING_KEPT) -> Responses:
    """Finish the trajectories from each of ``steps`` with a correction there and nowhere else."""
    noise, cond = setup.noise(seed, indices), setup.conditioning(indices)
    reference = state.part("reference", lambda: {"x": setup.reference_states(seed, indices)[-1].cpu().numpy()})["x"]
    scale = np.linalg.norm(reference.reshape(len(reference), -1), axis=1)[:, None]

    def relative(final: torch.Tensor) -> np.ndarray:
        return (final.cpu().numpy() - reference).reshape(len(reference), -1) / scale

    def finish(sampler: Sampler, i: int, x: torch.Tensor, cache: FeatureCache | None) -> np.ndarray:
        for j in range(i, len(sampler.timetable)):
            x, cache = sampler.step(setup.network, j, x, noise, cond, cache)
        return relative(x)

    def visits() -> Iterator[tuple[int, torch.Tensor, FeatureCache | None]]:
        x, cache = noise.initial(setup.sampler.dtype, setup.device), None
        for i in range(len(setup.sampler.timetable)):
            yield i, x, cache
            x, cache = setup.plain.step(setup.network, i, x, noise, cond, cache)
        yield len(setup.sampler.timetable), x, cache

    caching = setup.sampler.refresh is not None
    found: dict[int, Arrays] = {}
    with stage("probing corrections", len(steps)) as advance:
        for i, x, cache in visits():
            if i in steps:

                def both(i: int = i, x: torch.Tensor = x, cache: FeatureCache | None = cache) -> Arrays:
                    probes = {"probe": finish(with_steps(setup.sampler, [i], PROBE), i, x, cache)}
                    if caching:
                        probes["feature"] = finish(with_steps(setup.sampler, [i], 0.0), i, x, cache)
                    return probes

                found[i] = state.part(f"step-{i:04d}", both)
                advance()
        base = relative(x)
    offset = np.stack([found[i].get("feature", base) - base for i in steps])
    slope = np.stack([found[i]["probe"] - found[i].get("feature", base) for i in steps]) / PROBE
    return Responses(tuple(steps), base, offset, slope)


def greedy(responses: Responses, lam: float, budget: int) -> tuple[tuple[int, ...], float]:
    """(steps in the order of their choice, predicted relative change of the mean squared error), see the module."""
    changes, deviation = responses.at(lam), responses.base
    left, chosen = list(range(len(responses.steps))), list[int]()
    squares = np.square(deviation).sum(-1)  # N
    before = float(squares.mean()) or float("nan")  # a network without error
    while left and len(chosen) < budget:
        candidates = np.stack([np.square(deviation + changes[k]).sum(-1) for k in left])
        k = int(candidates.mean(-1).argmin())
        if mean_interval(squares - candidates[k])[0] <= 0:
            break
        squares, deviation = candidates[k], deviation + changes[left[k]]
        chosen.append(responses.steps[left.pop(k)])
    return tuple(chosen), float(squares.mean() / before - 1)


def relative_change(before: np.ndarray, after: np.ndarray) -> Interval:
    """Mean of after - before over the mean of before, paired image by image, with its interval; nan where there was no error."""
    scale = float(before.mean()) or float("nan")
    return Interval(*(end / scale for end in Interval.of_mean(after - before)))
