"""What the schedulers of IEC share: how a step is corrected, and which step and correction a call of the pipeline belongs to."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iec.errors import ConfigError
from iec.pipelines.constructor import OURS
from iec.pipelines.run import Run
from iec.sampling.correction import Correction, none_frozen, update
from iec.sampling.network import Step
from iec.sampling.placement import LastStep, Placement

Solve = Callable[[Tensor], tuple[Tensor, ...]]
"""A step from its x_t: the network's output F -> (A x_t + B F + noise, and what else the scheduler tells: x_0)."""
ROUNDED = 2**-7
"""Relative error of a number that was rounded to bfloat16 twice."""


@dataclass
class Pending:
    """A step between its first call and its last one: its x_t, A, B and noise, and bool [B], the images that have converged."""

    solve: Solve
    frozen: Tensor


class Corrected:
    """A scheduler of diffusers, before which this class stands, whose steps are corrected:

        y <- y + lambda_k (A x_t + B F(y, t) + noise - y),   k = 1 .. K,   F the network's output,

    from y = A x_t + B F(x_t, t) + noise, with x_t, A, B, noise and the label t frozen. A pipeline calls its network once for each
    entry of ``timesteps``. Like diffusers' Heun scheduler, these repeat the timesteps of the steps that they correct, and tell by
    position which step and which correction a call belongs to.
    """

    config: Any
    num_inference_steps: Any

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, which drops without a word a keyword that the scheduler does not have. Raises `ConfigError` for one that
        the old scheduler does not have either.
        """
        known = {*inspect.signature(cls.__init__).parameters, *(config if isinstance(config, Mapping) else ())}
        unknown = [] if return_unused_kwargs else sorted(kwargs.keys() - known)
        if unknown:
            near = difflib.get_close_matches(unknown[0], known)
            meant = f"did you mean {' or '.join(near)}?" if near else f"of a correction it takes {', '.join(OURS)}."
            raise ConfigError(f"{cls.__name__} takes no {unknown[0]}. Leave it out; {meant}")
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[misc]  # that of the scheduler behind

    def require_valid(self) -> None:
        """Raises `ConfigError` for a configuration that cannot be run."""

    def prepare(self) -> None:
        """Correction and placement by the configuration, and no run yet."""
        config = self.config
        lambdas, steps = config["lambdas"], config["steps"]
        values = (lambdas,) if isinstance(lambdas, int | float) else None if lambdas is None else tuple(lambdas)
        names = ("tolerance", "criterion", "norm", "evaluate_at")
        given: dict[str, Any] = {"lambdas": values, **{key: config[key] for key in names if key in config}}
        changes = {key: value for key, value in given.items() if value is not None}
        self.correction = Correction.preset(config["preset"], iterations=config["iterations"], **changes)
        placement = (config["placement"], config["fraction"], config["count"], tuple(steps or ()))
        last_step: LastStep = config["last_step"] if self.correction.evaluate_at == "t" else "skip"  # there is no label s there
        self.placement = Placement(*placement, config["cached_steps"], last_step)
        # set by `iec.apply`, never saved: what is looked at before every run
        self.before_run: Callable[[], None] | None = None
        # and the refresh steps of T: a function, and for the steps that are run
        self.refresh_of: Callable[[int], frozenset[int]] | None = None
        self._refresh: frozenset[int] | None = None
        self.run = Run((), (), False)
        self.labels: tuple[float, ...] = ()
        self.position: int | None = None  # of the next call in ``timesteps``; None before the first
        self.pending: Pending | None = None
        self.passed_over = False  # the last entry was

    @property
    def timesteps(self) -> Tensor:
        """The timestep of every network call: that of a corrected step 1 + K times.

        Raises `ConfigError` between the calls of a corrected step. Pipelines read the list before their loop; what looks up a
        timestep inside it would find the first of its entries, and count the repetitions as steps.
        """
        if self.pending is not None:
            raise ConfigError(
                "The timesteps are read between the calls of a corrected step, which all have the same one. DeepCacheSDHelper does "
                "so to find its step, and its schedule would shift or vanish: call its disable(), and use iec.apply(pipe, "
                "cache=...). Anything else can read them before the run, or after another set_timesteps."
            )
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._timesteps = value

    def lay_out(self, still: Collection[int], clean: Collection[int], *, listed: bool) -> list[int]:
        """Repeat the ``timesteps`` [T], as the parent's ``set_timesteps`` left them, for the corrected steps, and forget an earlier
        run: which of them every entry is. still: steps that leave x as it is. clean: those that end at the clean image.
        """
        labels = self._timesteps
        self._refresh = None if self.refresh_of is None else self.refresh_of(len(labels))
        steps = self.placement.corrected(len(labels), self._refresh, still, clean) if self.correction.iterations else frozenset()
        self.run = Run.laid_out(labels.tolist(), steps, self.correction.iterations, listed=listed)
        later = self.correction.evaluate_at == "s"  # the calls of a correction are labelled s, the next timestep
        entries = [i + (later and k > 0) for i, k in self.run.calls]
        self._timesteps = labels[entries]
        self.labels = tuple(self._timesteps.tolist())
        self.num_inference_steps = len(labels)
        self.order = self.run.order
        self.position, self.pending = None, None
        return entries

    def set_begin_index(self, begin_index: int = 0) -> None:
        """For pipelines that run ``timesteps[begin_index:]`` only. Raises `ConfigError` where that is not what they mean."""
        self.begin(begin_index)

    def begin(self, entry: int) -> int:
        """Begin the run at this entry: the sampling index of its first step. The schedule of a cache is that of the steps that are
        run. Raises `ConfigError`, see `Run.first_step`.
        """
        everywhere = self.placement.kind == "all_steps" and self.placement.last_step == "correct"
        first = self.run.first_step(entry, cached_steps=everywhere)
        self.position = entry
        if self.refresh_of is not None:
            self._refresh = frozenset(first + i for i in self.refresh_of(len(self.run.timesteps) - first))
        return first

    def call(self, timestep: float | Tensor) -> Step:
        """The network call that comes next; ``timestep`` has to be its own. Raises `ConfigError`."""
        i, k = self.next_call(timestep)
        cached = self._refresh is not None and i not in self._refresh and not (k and self.placement.cached_steps == "full")
        cached = cached and not (k and self.pending is None)  # passed over, before there is a feature
        t: Any = self.run.timesteps[i]  # a fraction on noise levels between those of the training
        return Step(i, t, "cached" if cached else "full", k)

    def abar(self) -> np.ndarray:
        """The signal's share of the variance where every step of the run begins, float64 [T]."""
        raise NotImplementedError

    def next_call(self, timestep: float | Tensor) -> tuple[int, int]:
        """(sampling index, correction) of the network call that comes next; ``timestep`` has to be its own. Raises `ConfigError`.

        A run whose pipeline sets no begin index begins at the first call of the first step with this timestep.
        """
        run, t = self.run, float(torch.as_tensor(timestep).flatten()[0])
        if self.position is None and run.calls:
            self.begin(next((p for p, (i, k) in enumerate(run.calls) if k == 0 and run.timesteps[i] == t), 0))
        position = self.position or 0
        if position == len(run.calls) or self.labels[position] != t:
            raise ConfigError(
                f"Timestep {t:g} is not that of call {position} of the {len(run.calls)} of this run. Call set_timesteps before "
                "every run, and step once for every entry of scheduler.timesteps, in order."
            )
        return run.calls[position]

    def label_near(self, timestep: float) -> float:
        """The label of the next call where ``timestep`` is that one, scaled and rounded (FLUX: by 1000, in bfloat16); else
        ``timestep``. Before the first call, of any call.
        """
        labels = self.labels if self.position is None else self.labels[self.position : self.position + 1]
        near = min(labels, key=lambda label: abs(label - timestep), default=timestep)
        return near if abs(near - timestep) <= ROUNDED * abs(near) else timestep

    @property
    def upcoming(self) -> tuple[int, int]:
        """(sampling index, correction) of the network call that comes next; (0, 0) where a run has not begun, or is over."""
        position = self.position or 0
        return self.run.calls[position] if position < len(self.run.calls) else (0, 0)

    @property
    def ended(self) -> bool:
        """Whether the last call was the last one of its step. Not behind an entry that was passed over."""
        position = self.position or 0
        return position > 0 and not self.passed_over and (position == len(self.run.calls) or self.run.calls[position][1] == 0)

    @property
    def frozen(self) -> Tensor | None:
        """Bool [B], within a step: the images that converged in an earlier correction of it. None between two steps, and without a
        tolerance.
        """
        return None if self.pending is None or self.correction.tolerance == 0 else self.pending.frozen

    def advance(
        self, output: Tensor, timestep: float | Tensor, sample: Tensor, step_from: Callable[[int, int, Tensor], Solve]
    ) -> tuple[Tensor, ...]:
        """From the network's output at ``sample`` to (the sample of its next call, what else the step tells), in float32 at least.

        step_from: sampling index, correction, x_t -> the step, which its corrections take again. A run that begins with a
        correction passes that entry over: the sample stays. With ``denoising_start`` diffusers runs one entry more than there are
        after it if order = 2 and their number is even, meaning Heun's list, whose first entry is single.
        """
        i, k = self.next_call(timestep)
        y = sample.to(torch.promote_types(sample.dtype, torch.float32))
        if k == 0:
            self.pending = Pending(step_from(i, k, y), none_frozen(y))
        pending = self.pending
        new, *beside = (step_from(i, k, y) if pending is None else pending.solve)(output)
        self.passed_over = pending is None
        if pending is None:
            new = y
        elif k:
            new, pending.frozen = update(y, new, k, self.correction, pending.frozen)
        self.position = position = (self.position or 0) + 1
        if position == len(self.run.calls) or self.run.calls[position][1] == 0:
            self.pending = None
        return new, *beside
