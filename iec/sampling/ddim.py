"""The sampling loop: DDIM over an explicit timetable, with corrections inside the step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor

from iec.errors import ConfigError, require_type
from iec.sampling.adaptive import AdaptiveRefresh
from iec.sampling.correction import Correction, kept, none_frozen, renormed, update
from iec.sampling.corrector import NO_CORRECTOR, Corrector, Taken, predict
from iec.sampling.network import FeatureCache, Mode, Network, Step, renewed, require_finite
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.solver import Solver
from iec.sampling.timetable import CLEAN, Timetable

DDIM = "ddim"


@dataclass(frozen=True)
class Carried:
    """What a step hands to the next one beside the state: the cached feature, and itself where the corrector may look back."""

    cache: FeatureCache | None = None
    last: Taken | None = None

    def of(self, images: Tensor) -> "Carried":
        """Of these images alone, int64 [B']."""
        cache, last = self.cache, self.last
        return Carried(None if cache is None else cache.of(images), None if last is None else last.of(images))

    @staticmethod
    def joined(parts: Sequence["Carried"], order: Tensor) -> "Carried":
        """One of the images of all ``parts``, one part after the other, put into ``order``, int64 [B]."""
        caches = [part.cache for part in parts if part.cache is not None]
        steps = [part.last for part in parts if part.last is not None]
        return Carried(FeatureCache.joined(caches, order) if caches else None, Taken.joined(steps, order) if steps else None)


@dataclass(frozen=True)
class Sampler(Solver):
    """DDIM with corrections: everything about a run but the network and the noise.

    * refresh: the steps that run the full network and refresh the cached feature; None: every step is full, nothing is cached.
    * adaptive: decides for each image whether it refreshes at a step that is not in ``refresh``, which is then {0}; None: none
      does. Images that refresh and images that reuse take the step as two batches, so that corrections, too, are those of the
      image: with ``cached_steps=skip`` it is corrected at the steps where it refreshes (also those of an explicit list). Steps that
      change nothing (t = s) refresh nothing.
    * epsilon_scale: the predicted noise is divided by it (arXiv 2308.15321, a control that costs nothing).
    * corrector: what changes a step without a call, see `Corrector`.
    * dtype: of the solver's arithmetic and of the states it yields; the network works in its own.
    """

    timetable: Timetable
    correction: Correction = field(default_factory=Correction)
    placement: Placement = field(default_factory=Placement)
    refresh: frozenset[int] | None = None
    adaptive: AdaptiveRefresh | None = None
    epsilon_scale: float = 1.0
    corrector: Corrector = NO_CORRECTOR
    dtype: torch.dtype = torch.float64
    solver: str = field(default=DDIM, init=False)

    def __post_init__(self) -> None:
        require_type("timetable", self.timetable, Timetable, 'e.g. iec.Timetable.spaced("uniform", 20, model.card.schedule)')
        require_type("correction", self.correction, Correction, "iec.Correction()")
        require_type("placement", self.placement, Placement, 'e.g. iec.Placement("all_steps")')
        require_type("corrector", self.corrector, Corrector, "one of iec.correctors, e.g. UniC()")
        if not 0.5 <= self.epsilon_scale <= 2:
            raise ConfigError(f"iec.epsilon_scale={self.epsilon_scale} is outside [0.5, 2]; 1 changes nothing.")
        super().__post_init__()
        self._require_fits_adaptive()
        _ = self.corrected  # refuse a placement that does not fit before anything is computed

    @cached_property
    def corrected(self) -> frozenset[int]:
        """The steps that are corrected: the placement's, less the no-ops and (``last_step=skip``, Heun) the step to the clean
        image.
        """
        if not self.correction.iterations:
            return frozenset()
        table, placement = self.timetable, self.placement
        if self.correction.evaluate_at == "s":
            placement = replace(placement, last_step="skip")
        still = [i for i in range(len(table)) if table.is_noop(i)]
        refresh = self.refresh if self.adaptive is None else None  # every step may be one at which some image refreshes
        return placement.corrected(len(table), refresh, still, [i for i, (_, s) in enumerate(table.pairs) if s == CLEAN])

    def trajectory(
        self, network: Network, noise: Noise, cond: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """See `Solver.trajectory`."""
        x, carried = noise.initial(self.dtype, device), Carried()
        yield x
        for i in range(len(self.timetable)):
            x, carried = self._taken(network, i, x, noise, cond, carried)
            for k, begin in enumerate(self.corrector.restarts(i, self)):
                x = self._renoised(x, i, begin, k, noise)
                for again in range(begin, i + 1):
                    x, carried = self._taken(network, again, x, noise, cond, carried)
            yield x

    def step(
        self, network: Network, i: int, x: Tensor, noise: Noise, cond: Tensor | None, cache: FeatureCache | None
    ) -> tuple[Tensor, FeatureCache | None]:
        """x_s and the cache after step i, taken alone (see `takes_single_steps`). A no-op costs no call, unless it has to refresh
        the cache.
        """
        x, carried = self._taken(network, i, x, noise, cond, Carried(cache))
        return x, carried.cache

    @torch.no_grad()
    def _taken(
        self, network: Network, i: int, x: Tensor, noise: Noise, cond: Tensor | None, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """Step i. Where images decide, those that refresh and those that reuse are advanced apart."""
        if self.makes_no_call(i):
            return x, carried
        if self.adaptive is None or self.mode(i) == "full":
            return self._advance(network, self.mode(i), i, x, noise, cond, carried)
        due = self.adaptive.due(carried.cache, i, len(x))
        if carried.cache is None or len(set(due)) == 1:
            return self._advance(network, "full" if due[0] else "cached", i, x, noise, cond, carried)
        places = [b for b, refreshes in enumerate(due) if refreshes], [b for b, refreshes in enumerate(due) if not refreshes]
        images = [torch.tensor(of, device=x.device) for of in places]
        modes: tuple[Mode, Mode] = ("full", "cached")
        parts = [
            self._advance(network, mode, i, x[own], noise.of(of), None if cond is None else cond[own], carried.of(own))
            for mode, own, of in zip(modes, images, places, strict=True)
        ]
        order = torch.cat(images).argsort()
        return torch.cat([y for y, _ in parts])[order], Carried.joined([own for _, own in parts], order)

    def _advance(
        self, network: Network, mode: Mode, i: int, x: Tensor, noise: Noise, cond: Tensor | None, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """Step i of a batch whose ordinary call has one ``mode``. With a cache, every image keeps the feature of the evaluation
        that ``correction.cache_from`` names; the last one is the last before the image was frozen.
        """
        table, ordinary = self.timetable, Step(i, self.timetable.pairs[i][0], mode)
        history = 0 if self.adaptive is None else self.adaptive.history
        corrector = NO_CORRECTOR if table.is_noop(i) else self.corrector
        timesteps, scale = corrector.timestep(x, ordinary, table), float(table.B[i]) / self.epsilon_scale

        def evaluate(y: Tensor, step: Step, told: int | Tensor) -> tuple[Tensor, FeatureCache | None]:
            prediction = predict(network, y, step, told, cond, carried.cache)
            return corrector.eps(prediction.eps.to(x.dtype), step, table), renewed(carried.cache, prediction, ordinary, history)

        eps, cache = evaluate(x, ordinary, timesteps)
        x = corrector.before(x, eps / self.epsilon_scale, ordinary, table, carried.last)
        fixed = float(table.A[i]) * x  # all of the update that the network has no part in
        if table.sigma[i] > 0:
            fixed = fixed + float(table.sigma[i]) * noise.of_step(i, x.dtype, x.device)
        y = uncorrected = moved(fixed, scale, eps, ordinary)
        frozen = none_frozen(x)
        for again in self._corrections(ordinary):
            eps, newer = evaluate(y, again, timesteps if self.correction.evaluate_at == "t" else again.timestep)
            target = moved(fixed, scale, eps, again)
            if self.correction.cache_from == "last":
                cache = kept(frozen, cache, newer)
            y, frozen = update(y, target, again.correction, self.correction, frozen)
            more = again.correction < self.correction.iterations
            if more and self.correction.tolerance and bool(frozen.all()):  # a device is waited for only where that saves a call
                break
        if self.correction.renorm and y is not uncorrected:
            y = fixed + renormed(y - fixed, uncorrected - fixed)
        taken = Taken(i, x, fixed, y, float(table.B[i]))
        last = carried.last if corrector.single_steps else taken
        return corrector.after(taken, table), Carried(cache, last)

    def _require_fits_adaptive(self) -> None:
        """Refuse what needs refresh steps that are known, or the batch as a whole."""
        if self.adaptive is None:
            return
        if self.refresh != frozenset({0}):
            raise ConfigError("With adaptive refresh the step that all images refresh at is the first: use refresh={0}.")
        if self.corrector.needs_refresh_steps:
            raise ConfigError(
                f"Under efficiency.schedule=adaptive each image decides where it refreshes, and {type(self.corrector).__name__} is "
                "fitted to the one kind of call that all images make at a step, or goes back to a step where all refresh. Use "
                "corrector=none, es, es_search, unic, dcw or timeshift, or another schedule."
            )
        if self.correction.norm == "batch" and self.correction.iterations and self.placement.kind != "none":
            raise ConfigError(
                "iec.norm=batch measures a whole batch, and under efficiency.schedule=adaptive its images take a step apart. Use "
                "iec.norm=image."
            )

    def _renoised(self, x: Tensor, i: int, begin: int, k: int, noise: Noise) -> Tensor:
        """x_s of step i with the noise that takes it up to the level where step ``begin`` starts. k: number of the restart."""
        table = self.timetable
        ratio = float(table.abar_t[begin] / table.abar_s[i])
        z = noise.of_step(len(table) * (k + 1) + i, x.dtype, x.device)  # streams that no step has
        return ratio**0.5 * x + (1 - ratio) ** 0.5 * z

    def _corrections(self, ordinary: Step) -> Iterator[Step]:
        """The calls that correct a step."""
        i = ordinary.index
        skipped = self.adaptive is not None and self.placement.cached_steps == "skip" and ordinary.mode == "cached"
        if i in self.corrected and not skipped:
            mode: Mode = "full" if self.placement.cached_steps == "full" else ordinary.mode
            timestep = self.timetable.pairs[i][0 if self.correction.evaluate_at == "t" else 1]
            for k in range(1, self.correction.iterations + 1):
                yield Step(i, timestep, mode, k)


def moved(fixed: Tensor, scale: float, eps: Tensor, step: Step) -> Tensor:
    """fixed + scale eps. Raises `NonFiniteError` that names the call."""
    g = fixed + scale * eps
    require_finite(g, step)
    return g


def takes_single_steps(solver: Solver) -> TypeGuard[Sampler]:
    """Whether a step can be taken alone (`Sampler.step`), as analyses do: one of a multistep solver depends on those before it, and
    so may one with a corrector, and one whose images decide where they refresh.
    """
    return isinstance(solver, Sampler) and solver.corrector.single_steps and solver.adaptive is None
