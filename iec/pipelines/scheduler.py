"""IEC as a scheduler of diffusers: a DDIM-based pipeline is corrected by exchanging its scheduler, and nothing else.

pipe.scheduler = iec.IECScheduler.from_config(pipe.scheduler.config)

A pipeline calls its network once for each entry of ``scheduler.timesteps``. Like diffusers' Heun scheduler, this one repeats the
timesteps of the steps that it corrects, and tells by position which step and which correction a call belongs to.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # where it is missing, saved pipelines cannot be loaded
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from iec.errors import ConfigError
from iec.pipelines.compatibility import DDIM_ALONE, DROPPED, for_ddim, is_euler, require_known, require_signal
from iec.pipelines.constructor import constructor
from iec.pipelines.corrected import Corrected, Solve
from iec.pipelines.euler import IECEulerScheduler
from iec.pipelines.hooks import Hooks, require_pipeline, schedule_of
from iec.sampling.corrector import NO_CORRECTOR, Corrector
from iec.sampling.timetable import CLEAN, NoiseSchedule, Timetable


class IECScheduler(Corrected, DDIMScheduler):  # type: ignore[misc]  # the bases of DDIMScheduler do not agree
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
    * A network that predicts v or x_0 (``v_prediction``, ``sample``) is corrected through what it predicts: F in the place of eps,
      with A and B of that form. For v that is the rotation x_s = cos(d) x_t - sin(d) v, cos d = sqrt(abar_s abar_t) +
      sqrt((1 - abar_s) (1 - abar_t)), which stays finite where abar_t = 0 (zero terminal SNR).
    * clip_sample and thresholding act on the x_0 of every call, as in DDIM. The step is then not linear in eps: the paper's rule,
      and `iec.Sampler`, have clip_sample=False.
    * z is drawn (or taken from variance_noise) in the first call of a step and is the same in its corrections; so are x_t and eta.
    * Arithmetic is in float32 at least. Without corrections the result is DDIMScheduler's, bit for bit in float32.
    * Image-to-image and inpainting start at ``timesteps[t_start * order:]``, which is right only if all steps before the last have
      the same number of calls. Where they have not, any start but the first is refused, by `ConfigError`, as is all that cannot be
      run.
    """

    __init__ = constructor(DDIMScheduler)

    def require_valid(self) -> None:
        """Raises `ConfigError` for names that DDIM does not have."""
        require_known(self.config["beta_schedule"], self.config["trained_betas"], self.config["prediction_type"])

    def prepare(self) -> None:
        """See `Corrected.prepare`."""
        super().prepare()
        self.corrector: Corrector = NO_CORRECTOR  # given to `from_config`, never saved
        self._hooks: Hooks | None = None

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, *, corrector: Corrector = NO_CORRECTOR, **kwargs: Any
    ) -> Any:
        """The scheduler that takes the place of the one with this ``config``; keywords come before what it says.

        Accepts DDIM, DDPM and PNDM. EulerDiscreteScheduler becomes an `IECEulerScheduler`, in its own variables and on its own
        noise levels. Values that the old scheduler had by default are kept, which diffusers would not do. Raises `ConfigError` for
        what has no step A x + B F (LCM, TCD, ancestral, multistep, second order), is of a flow, or has what DDIM would drop.

        An argument that only DDIM has, such as clip_sample=False, says that plain DDIM is meant. Then Euler becomes DDIM too, and
        so, with a `UserWarning`, do solvers of another kind on the same noise schedule.

        corrector: one of `iec.correctors` that only looks at a step's states and noise (EpsilonScaling, UniC, DCW), or what a fit
        gave (AffineTables). It acts as in `iec.Sampler`, on networks that predict eps, without clip_sample and thresholding. It is
        not saved with the scheduler.
        """
        require_pipeline(corrector)
        if isinstance(config, Mapping):
            euler = is_euler(config) and corrector == NO_CORRECTOR
            if cls is IECScheduler and euler and not DDIM_ALONE & kwargs.keys():
                return IECEulerScheduler.from_config(config, return_unused_kwargs, **kwargs)
            kwargs |= for_ddim(config, kwargs)
            said = DROPPED.keys() & kwargs.keys()  # to go, and never asked about again
            config = {key: value for key, value in config.items() if key not in said}
            kwargs = {key: value for key, value in kwargs.items() if key not in said}
        made: Any = super().from_config(config, return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        scheduler.corrector = corrector
        scheduler.hooked()  # refuses what cannot be run
        return made

    def hooked(self) -> NoiseSchedule:
        """The noise schedule: with a corrector one that it knows. Raises `ConfigError`."""
        if self.corrector == NO_CORRECTOR:
            return NoiseSchedule(num_timesteps=self.config["num_train_timesteps"])  # its betas are not used; alphas_cumprod is
        return schedule_of(self.config, self.alphas_cumprod)

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
        table = Timetable.from_timesteps(values, self.hooked(), final=CLEAN if self.config["set_alpha_to_one"] else 0)
        self._hooks = None if self.corrector == NO_CORRECTOR else Hooks(self.corrector, table)
        require_signal(self.config["prediction_type"], any(self.alphas_cumprod[t] == 0 for t in values))
        self.pairs = table.pairs
        self.timesteps = torch.tensor(values, dtype=torch.int64, device=device)
        still = [i for i in range(len(table)) if table.is_noop(i)]
        clean = [i for i, (_, s) in enumerate(table.pairs) if s == CLEAN]
        self.lay_out(still, clean, listed=timesteps is not None)

    def abar(self) -> np.ndarray:
        """See `Corrected.abar`."""
        return self.alphas_cumprod[[t for t, _ in self.pairs]].double().cpu().numpy()

    # fmt: off
    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None, variance_noise: Tensor | None = None, return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple:
        # fmt: on
        """From the network's output at ``sample`` to the sample of its next call, [B, ..]; arguments as in DDIMScheduler.step. eta
        and the noise are those of the first call of a step.
        """

        def step_from(i: int, k: int, x: Tensor) -> Solve:
            z = variance_noise if eta > 0 and k == 0 else None  # a correction that is passed over draws nothing
            if eta > 0 and k == 0:
                if z is None:
                    z = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
                elif generator is not None:
                    raise ConfigError("Give generator or variance_noise, and not both.")
            if self._hooks is not None and k == 0:
                self._hooks, x = self._hooks.begin(call, x, model_output.to(x.dtype), eta, z)
            return lambda output: self._ddim(i, output.to(x.dtype), x, eta, z, use_clipped_model_output)

        call, hooks = self.call(timestep), self._hooks
        work = torch.promote_types(sample.dtype, torch.float32)
        output = model_output if hooks is None else hooks.eps(model_output.to(work), call)
        new, x0 = self.advance(output, timestep, sample, step_from)
        if self._hooks is not None and self.pending is None:
            self._hooks, new = self._hooks.end(new)
        new, x0 = new.to(sample.dtype), x0.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=new, pred_original_sample=x0) if return_dict else (new, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As in DDIMScheduler, but t stands for s between the calls of a step: inpainting puts the noised original back into the
        state, which is at s by then, and asks for it by the timestep of the next call."""
        if self.pending is not None:
            t, s = self.pairs[self.run.calls[self.position or 0][0]]
            if s == CLEAN and bool((timesteps == t).all()):
                return original_samples.clone()
            timesteps = torch.where(timesteps == t, s, timesteps)
        return super().add_noise(original_samples, noise, timesteps)  # type: ignore[arg-type]  # their IntTensor is int64

    def _ddim(
        self, i: int, output: Tensor, x: Tensor, eta: float, z: Tensor | None, use_clipped: bool
    ) -> tuple[Tensor, Tensor]:
        """A x_t + B F + sigma z and x_0, for the network's output F; in DDIMScheduler's order, for the last bit."""
        t, s = self.pairs[i]
        a_t, a_s = self.alphas_cumprod[t], self.final_alpha_cumprod if s == CLEAN else self.alphas_cumprod[s]
        b_t = 1 - a_t
        eps, x0 = output, output
        if self.config["prediction_type"] == "epsilon":
            x0 = (x - b_t**0.5 * eps) / a_t**0.5
        elif self.config["prediction_type"] == "sample":
            eps = (x - a_t**0.5 * x0) / b_t**0.5
        else:
            x0 = a_t**0.5 * x - b_t**0.5 * output
            eps = a_t**0.5 * output + b_t**0.5 * x
        if self.config["thresholding"]:
            x0 = self._threshold_sample(x0)
        elif self.config["clip_sample"]:
            x0 = x0.clamp(-self.config["clip_sample_range"], self.config["clip_sample_range"])
        if use_clipped:
            eps = (x - a_t**0.5 * x0) / b_t**0.5
        sigma = eta * ((1 - a_s) / b_t * (1 - a_t / a_s)) ** 0.5
        target = a_s**0.5 * x0 + (1 - a_s - sigma**2) ** 0.5 * eps
        return target if z is None else target + sigma * z.to(target.dtype), x0
