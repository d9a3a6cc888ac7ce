"""IEC as a scheduler of diffusers: a DDIM-based pipeline is corrected by exchanging its scheduler, and nothing else.

pipe.scheduler = iec.IECScheduler.from_config(pipe.scheduler.config)

A pipeline calls its network once for each entry of ``scheduler.timesteps``. Like diffusers' Heun scheduler, this one repeats the
timesteps of the steps that it corrects, and tells by position which step and which correction a call belongs to.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # where it is missing, saved pipelines cannot be loaded
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from iec.errors import ConfigError
from iec.pipelines.compatibility import DROPPED, for_ddim, plain, require_known, require_signal
from iec.pipelines.run import Run
from iec.sampling.correction import Correction, none_frozen, update
from iec.sampling.ddim import Sampler
from iec.sampling.network import Step
from iec.sampling.placement import CachedSteps, LastStep, Placement
from iec.sampling.timetable import CLEAN, NoiseSchedule, Timetable


@dataclass
class _Pending:
    """A step between its first call and its last one. x: x_t. z: the noise, if eta > 0. frozen [B]: images that have converged."""

    x: Tensor
    eta: float
    z: Tensor | None
    frozen: Tensor


class IECScheduler(DDIMScheduler):
    """DDIM with Iterative Error Correction (arXiv 2511.06250, Algorithm 1).

        x^(0) = A x_t + B eps(x_t, t) + sigma z                                                   the first call of a step
        x^(k) = x^(k-1) + lambda_k (A x_t + B eps(x^(k-1), t) + sigma z - x^(k-1))                correction k = 1 .. K

    The arguments of DDIMScheduler mean what they mean there. preset, iterations (K), lambdas (one, or one a correction), tolerance,
    criterion, norm: see `Correction`; None is the preset's. placement, fraction, count, steps, cached_steps,
    last_step: see `Placement`.

    * A pipeline's number of calls is fixed. With a tolerance, images that have converged stay as they are, but the calls still
      happen: it is off by default (0; None is the preset's).
    * A step goes from a timestep to the next one of the list. (DDIMScheduler subtracts num_train_timesteps // T, which is not the
      next one with ``linspace`` and where T does not divide.) The list can be given: ``set_timesteps(timesteps=[..])``.
    * ``v_prediction`` and ``sample`` are turned into eps at the state that the network was given, and corrected through eps.
    * clip_sample and thresholding act on the x_0 of every call, as in DDIM. The step is then not linear in eps: the paper's rule,
      and `iec.Sampler`, have clip_sample=False.
    * z is drawn (or taken from variance_noise) in the first call of a step and is the same in its corrections; so are x_t and eta.
    * Arithmetic is in float32 at least. Without corrections the result is DDIMScheduler's, bit for bit in float32.
    * Image-to-image and inpainting start at ``timesteps[t_start * order:]``, which is right only if all steps have the same
      number of calls. Where they have not, any start but the first is refused, by `ConfigError`, as is all that cannot be run.
    """

    # fmt: off
    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02, beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None, clip_sample: bool = True, set_alpha_to_one: bool = True,
        steps_offset: int = 0, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0, sample_max_value: float = 1.0,
        timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
        preset: str = "paper", iterations: int | None = None, lambdas: float | Sequence[float] | None = None,
        tolerance: float | None = 0.0, criterion: str | None = None, norm: str | None = None,
        placement: str = "all_steps", fraction: float | None = None, count: int | None = None, steps: Sequence[int] | None = None,
        cached_steps: CachedSteps = "skip", last_step: LastStep = "correct",
    ) -> None:
        # fmt: on
        require_known(beta_schedule, trained_betas, prediction_type)
        self.register_to_config(**{key: plain(value) for key, value in self.config.items() if not key.startswith("_")})
        # by keyword: diffusers would note positional arguments down as defaults, and lose them when the scheduler is saved
        super().__init__(**{key: self.config[key] for key in inspect.signature(DDIMScheduler).parameters if key in self.config})
        config = self.config
        lambdas, steps = config["lambdas"], config["steps"]
        values = (lambdas,) if isinstance(lambdas, int | float) else None if lambdas is None else tuple(lambdas)
        given: dict[str, Any] = {"lambdas": values, **{key: config[key] for key in ("tolerance", "criterion", "norm")}}
        changes = {key: value for key, value in given.items() if value is not None}
        self.correction = Correction.preset(preset, iterations=config["iterations"], **changes)
        self.placement = Placement(placement, config["fraction"], config["count"], tuple(steps or ()), cached_steps, last_step)
        # set by `iec.apply`, never saved: the refresh steps of T, and what is looked at before every run
        self.refresh_of: Callable[[int], frozenset[int]] | None = None
        self.before_run: Callable[[], None] | None = None
        self.run = Run((), (), False)
        self.position: int | None = None  # of the next call in ``timesteps``; None before the first
        self._refresh: frozenset[int] | None = None
        self._pending: _Pending | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler that takes the place of the one with this ``config``; keywords come before what it says.

        Accepts DDIM, DDPM, PNDM and Euler. Accepts, with a `UserWarning`, solvers of another kind on the same noise schedule
        (DPM-Solver, UniPC, Heun, KDPM2, LMS, Euler ancestral), because their steps become those of DDIM. Values that the old
        scheduler had by default are kept, which diffusers would not do. Raises `ConfigError` for what DDIM would drop (flow
        matching, distilled samplers, Karras' noise levels ..), and if the old scheduler has no ``clip_sample`` and none is given.
        """
        if isinstance(config, Mapping):
            kwargs |= for_ddim(config, kwargs)
            said = DROPPED.keys() & kwargs.keys()  # to go, and never asked about again
            config = {key: value for key, value in config.items() if key not in said}
            kwargs = {key: value for key, value in kwargs.items() if key not in said}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def timesteps(self) -> Tensor:
        """The timestep of every network call, int64: that of a corrected step 1 + K times.

        Raises `ConfigError` between the calls of a corrected step. Pipelines read the list before their loop; what looks up a
        timestep inside it would find the first of its entries, and count the repetitions as steps.
        """
        if self._pending is not None:
            raise ConfigError(
                "The timesteps are read between the calls of a corrected step, which all have the same one. DeepCacheSDHelper does "
                "so to find its step, and its schedule would shift or vanish: call its disable(), and use iec.apply(pipe, "
                "cache=...). Anything else can read them before the run, or after another set_timesteps."
            )
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._timesteps = value

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None) -> None:
        """Lay out T = ``num_inference_steps`` steps by the configured spacing, or those of the list ``timesteps``, from the
        noisiest, and forget an earlier run. Raises `ConfigError` for a list that rises and for a placement that does not fit.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ConfigError("set_timesteps takes num_inference_steps or timesteps, one of them.")
        if self.before_run is not None:
            self.before_run()
        if num_inference_steps is not None:
            super().set_timesteps(num_inference_steps)
        values = [int(t) for t in (self._timesteps.tolist() if timesteps is None else timesteps)]
        schedule = NoiseSchedule(num_timesteps=self.config["num_train_timesteps"])  # its betas are not used; alphas_cumprod is
        table = Timetable.from_timesteps(values, schedule, final=CLEAN if self.config["set_alpha_to_one"] else 0)
        self._refresh = None if self.refresh_of is None else self.refresh_of(len(table))
        corrected = Sampler(table, self.correction, self.placement, self._refresh).corrected
        silent = {i for i, t in enumerate(values) if self.alphas_cumprod[t] == 0}
        require_signal(self.config["prediction_type"], bool(silent), bool(silent & corrected))
        calls = [(i, k) for i in range(len(table)) for k in range(1 + (self.correction.iterations if i in corrected else 0))]
        self.run = Run(table.pairs, tuple(calls), timesteps is not None)
        self.timesteps = torch.tensor([values[i] for i, _ in calls], dtype=torch.int64, device=device)
        self.num_inference_steps: Any = len(table)
        self.order = self.run.order
        self.position, self._pending = None, None

    def abar(self, timesteps: Sequence[int]) -> np.ndarray:
        """abar at each, float64."""
        return self.alphas_cumprod[list(timesteps)].double().cpu().numpy()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """For pipelines that run ``timesteps[begin_index:]`` only. Raises `ConfigError` where that is not what they mean."""
        run, refresh_of = self.run, self.refresh_of
        everywhere = self.placement.kind == "all_steps" and self.placement.last_step == "correct"
        first = run.first_step(begin_index, cached_steps=everywhere)
        if refresh_of is not None:  # the schedule is that of the steps that are run
            self._refresh = frozenset(first + i for i in refresh_of(len(run.pairs) - first))
        self.position = begin_index

    def call(self, timestep: int | Tensor) -> Step:
        """The network call that comes next; ``timestep`` has to be its own. Raises `ConfigError`."""
        run, t = self.run, int(torch.as_tensor(timestep).flatten()[0])
        if self.position is None and run.calls:
            self.set_begin_index(next((p for p, (i, _) in enumerate(run.calls) if run.pairs[i][0] == t), 0))
        position = self.position or 0
        if position == len(run.calls) or run.pairs[run.calls[position][0]][0] != t:
            raise ConfigError(
                f"Timestep {t} is not that of call {position} of the {len(run.calls)} of this run. Call set_timesteps before every "
                "run, and step once for every entry of scheduler.timesteps, in order."
            )
        i, k = run.calls[position]
        cached = self._refresh is not None and i not in self._refresh and not (k and self.placement.cached_steps == "full")
        cached = cached and not (k and self._pending is None)  # passed over, before there is a feature
        return Step(i, t, "cached" if cached else "full", k)

    @property
    def frozen(self) -> Tensor | None:
        """Bool [B], within a step: the images that converged in an earlier correction of it. None between two steps, and without a
        tolerance.
        """
        return None if self._pending is None or self.correction.tolerance == 0 else self._pending.frozen

    # fmt: off
    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None, variance_noise: Tensor | None = None, return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple:
        # fmt: on
        """From the network's output at ``sample`` to the sample of its next call, [B, ..]; arguments as in DDIMScheduler.step.

        A run that begins with a correction passes that entry over: the sample stays. With ``denoising_start`` diffusers runs one
        entry more than there are after it if order = 2 and their number is even, meaning Heun's list, whose first entry is single.
        """
        call, work = self.call(timestep), torch.promote_types(sample.dtype, torch.float32)
        y = sample.to(work)
        if call.correction == 0:
            if eta > 0 and variance_noise is None:
                variance_noise = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            elif eta > 0 and generator is not None:
                raise ConfigError("Give generator or variance_noise, and not both.")
            z = variance_noise if eta > 0 else None
            self._pending = _Pending(y, eta, z, none_frozen(y))
        pending = self._pending or _Pending(y, 0.0, None, none_frozen(y))
        new, x0 = self._ddim(call, model_output.to(work), y, pending, use_clipped_model_output)
        if self._pending is None:
            new = y
        elif call.correction:
            new, pending.frozen = update(y, new, call.correction, self.correction, pending.frozen)
        self.position = position = (self.position or 0) + 1
        if position == len(self.run.calls) or self.run.calls[position][1] == 0:
            self._pending = None
        new, x0 = new.to(sample.dtype), x0.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=new, pred_original_sample=x0) if return_dict else (new, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As in DDIMScheduler, but t stands for s between the calls of a step: inpainting puts the noised original back into the
        state, which is at s by then, and asks for it by the timestep of the next call."""
        if self._pending is not None:
            t, s = self.run.pairs[self.run.calls[self.position or 0][0]]
            if s == CLEAN and bool((timesteps == t).all()):
                return original_samples.clone()
            timesteps = torch.where(timesteps == t, s, timesteps)
        return super().add_noise(original_samples, noise, timesteps)  # type: ignore[arg-type]  # their IntTensor is int64

    def _ddim(self, call: Step, output: Tensor, y: Tensor, pending: _Pending, use_clipped: bool | None) -> tuple[Tensor, Tensor]:
        """A x_t + B eps + sigma z and x_0, for the eps that ``output`` means at y; in DDIMScheduler's order, for the last bit."""
        t, s = self.run.pairs[call.index]
        a_t, a_s = self.alphas_cumprod[t], self.final_alpha_cumprod if s == CLEAN else self.alphas_cumprod[s]
        b_t = 1 - a_t
        eps, x0 = output, output
        if self.config["prediction_type"] == "epsilon":
            x0 = (y - b_t**0.5 * eps) / a_t**0.5
        elif self.config["prediction_type"] == "sample":
            eps = (y - a_t**0.5 * x0) / b_t**0.5
        else:
            x0 = a_t**0.5 * y - b_t**0.5 * output
            eps = a_t**0.5 * output + b_t**0.5 * y
        if call.correction:  # the same noise, taken off x_t
            x0 = (pending.x - b_t**0.5 * eps) / a_t**0.5
        if self.config["thresholding"]:
            x0 = self._threshold_sample(x0)
        elif self.config["clip_sample"]:
            x0 = x0.clamp(-self.config["clip_sample_range"], self.config["clip_sample_range"])
        if use_clipped:
            eps = (pending.x - a_t**0.5 * x0) / b_t**0.5
        sigma = pending.eta * ((1 - a_s) / b_t * (1 - a_t / a_s)) ** 0.5
        target = a_s**0.5 * x0 + (1 - a_s - sigma**2) ** 0.5 * eps
        return target if pending.z is None else target + sigma * pending.z.to(target.dtype), x0
