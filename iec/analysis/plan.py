"""Where the full calls of a run pay most: which steps refresh the cached feature and which are corrected, chosen together.

`suggest` takes the refresh steps as they are and adds corrections by a first-order model. Here a call may be either, and a choice
is judged by the final images that it makes: see `iec.efficiency.planning`, whose search this is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iec.analysis.heldout import PAPER, Line, ends, require_held_out
from iec.analysis.setup import Setup, final_errors
from iec.analysis.suggest import GRID, eligible, relative_change, require_lambdas, with_steps
from iec.efficiency.planning.final import Batch, FinalError
from iec.efficiency.planning.plan import SEED, usual
from iec.efficiency.planning.search import Evaluations, search
from iec.efficiency.planning.space import Choice, Space
from iec.errors import ConfigError
from iec.io.progress import reported
from iec.metrics.interval import Interval
from iec.sampling.ddim import Sampler
from iec.sampling.network import Calls, CountingNetwork

EVALUATIONS = 100
"""Ways to spend the calls that are tried, if nothing else is said."""


@dataclass(frozen=True)
class CallPlan:
    """Full calls of an image, spent. choice: the steps that refresh, those that are corrected once, and lambda. error: mean
    relative distance of the final calibration images to the full-precision ones. spent: calls that the search took, in images.
    """

    sampler: Sampler
    choice: Choice
    error: float
    spent: Calls

    @property
    def overrides(self) -> str:
        """For ``iec run``, of DeepCache."""
        choice, correction, placement = self.choice, self.sampler.correction, self.sampler.placement
        words = ["efficiency.schedule=explicit", f"efficiency.steps=[{_listed(choice.refresh)}]"]
        if not choice.corrected:
            return " ".join([*words, "iec=none"])
        words += ["iec=all_steps", "iec.placement=explicit", f"iec.steps=[{_listed(choice.corrected)}]"]
        words += [f"iec.lambda={choice.lam:g}", f"iec.cache_from={correction.cache_from}"]
        return " ".join([*words, f"iec.evaluate_at={correction.evaluate_at}", f"iec.cached_steps={placement.cached_steps}"])


def _listed(steps: frozenset[int]) -> str:
    return ",".join(str(i) for i in sorted(steps))


def plan_for(
    setup: Setup,
    calls: int,
    corrections: int | None = None,
    *,
    images: int = 8,
    lambdas: Sequence[float] = GRID,
    evaluations: int = EVALUATIONS,
    seed: int = SEED,
    path: Path | None = None,
) -> CallPlan:
    """The best way found to spend ``calls`` full calls an image, of which ``corrections`` are corrections; None: as many as pay.

    The network has to take any refresh steps, as DeepCache's does. Of the sampler, ``correction.cache_from`` and ``evaluate_at``,
    ``placement.cached_steps`` and ``last_step`` are kept; K is 1. images: of ``seed``. path: the file of the search, from which it
    goes on. Raises `ConfigError` before any call.
    """
    sampler = setup.sampler
    space, starts = require_plannable(sampler, calls, corrections, images=images, lambdas=lambdas, evaluations=evaluations)
    network, indices = CountingNetwork(setup.network), range(images)
    noise, cond = setup.noise(seed, indices), setup.conditioning(indices)
    counted = CountingNetwork(setup.reference, network.calls)
    with reported("planning calls") as report:
        objective = FinalError(network, lambda choice: sampler_of(sampler, choice), (), setup.device)
        evaluate = Evaluations(objective, evaluations, network.calls, path, lambda done: report(done, evaluations))
        objective.batches = [Batch.of(counted, setup.full_precision, noise, cond, setup.device)]
        best = search(space, starts, evaluate, seed)
    return CallPlan(sampler, best, evaluate(best), network.calls)


def require_plannable(
    sampler: Sampler, calls: int, corrections: int | None, *, images: int, lambdas: Sequence[float], evaluations: int
) -> tuple[Space, list[Choice]]:
    """What may be chosen, and the choices to begin with. Raises `ConfigError` for what `plan_for` cannot take."""
    space = space_of(sampler, corrections is None, lambdas)
    starts = starts_of(space, calls, corrections)
    if evaluations < len(starts) or images < 1:
        raise ConfigError(f"A plan needs 1 image or more, and {len(starts)} evaluations or more to begin with.")
    return space, starts


def space_of(sampler: Sampler, split: bool, lambdas: Sequence[float]) -> Space:
    """What may be chosen. Raises `ConfigError` for corrections that cost no full call, for a lambda that cannot be run, and for a
    corrector that is fitted to the refresh steps.
    """
    cached_steps = sampler.placement.cached_steps
    if sampler.corrector.needs_refresh_steps or sampler.corrector.calibration_calls(sampler):
        raise ConfigError(
            f"{type(sampler.corrector).__name__} is fitted for refresh steps that are known, and a plan of the calls chooses them. "
            "Use corrector=none here, and fit it for the steps that are found."
        )
    if cached_steps == "cached":
        raise ConfigError(
            "iec.cached_steps=cached makes corrections that are no full calls, and a budget of full calls says nothing about them. "
            "Use iec.cached_steps=skip, or full."
        )
    require_lambdas(lambdas)
    correctable = frozenset(eligible(replace(sampler, refresh=None)))
    return Space(len(sampler.timetable), split, correctable, cached_steps == "skip", tuple(sorted(lambdas)))


def starts_of(space: Space, calls: int, corrections: int | None) -> list[Choice]:
    """Usual schedules of as many calls: without corrections, and with the refresh steps of half as many corrected; or with the
    first and the last of them, where the number of corrections is given. Raises `ConfigError` for a budget that cannot be spent.
    """
    lam = min(space.lambdas, key=lambda value: abs(value - PAPER))
    counts = [corrections] if corrections is not None else [0, *([calls // 2] if calls % 2 == 0 else [])]
    possible = [count for count in counts if 0 <= count < calls <= space.steps + count]
    if not possible:
        raise ConfigError(
            f"{calls} calls with {' or '.join(map(str, counts))} corrections: one call or more has to refresh, and at most "
            f"{space.steps} steps can. Give a number of calls of 1 .. {2 * space.steps} and of corrections that leaves 1 .. "
            f"{space.steps} calls to refresh."
        )
    found: list[Choice] = []
    for count in possible:
        for refresh in usual(space.steps, calls - count):
            open_steps = sorted(space.correctable & refresh if space.on_refresh else space.correctable)
            if count <= len(open_steps):
                found.append(Choice(refresh, frozenset(ends(open_steps, count)), lam))
    if not found:
        raise ConfigError(f"{corrections} corrections are more than the steps that {calls} calls leave to correct.")
    return list({choice.key: choice for choice in found}.values())


def sampler_of(sampler: Sampler, choice: Choice) -> Sampler:
    """The sampler that spends its calls as chosen."""
    return replace(with_steps(sampler, sorted(choice.corrected), choice.lam), refresh=choice.refresh)


def held_out_plan(setup: Setup, plan: CallPlan, seed: int, indices: Sequence[int]) -> list[Line]:
    """The plan beside the usual schedules at as many full calls, on images that it was not made from. Raises `ConfigError` if the
    seed is that of the calibration.
    """
    require_held_out(seed, SEED)
    calls = len(plan.choice.refresh) + len(plan.choice.corrected)
    choices = {"plan": plan.choice}
    for choice in starts_of(space_of(setup.sampler, True, (PAPER,)), calls, None):
        corrected = "all" if choice.corrected == choice.refresh else _listed(choice.corrected)
        choices[f"refreshes {_listed(choice.refresh)}" + (f", {corrected} corrected" if choice.corrected else "")] = choice
    errors = final_errors(setup, [sampler_of(setup.sampler, choice) for choice in choices.values()], seed, indices)
    return [
        Line(
            label,
            tuple(sorted(choice.corrected)),
            len(choice.corrected),
            Interval.of_mean(error),
            relative_change(error, errors[0]),
        )
        for (label, choice), error in zip(choices.items(), errors, strict=True)
    ]
