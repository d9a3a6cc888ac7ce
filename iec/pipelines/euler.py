"""IEC as the scheduler of Stable Diffusion XL and others that are sampled by Euler's rule in Karras' variables.

pipe.scheduler = iec.IECScheduler.from_config(pipe.scheduler.config)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler, EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # where it is missing, saved pipelines cannot be loaded
from torch import Tensor

from iec.errors import ConfigError
from iec.pipelines.compatibility import is_euler, require_known
from iec.pipelines.constructor import constructor, kept
from iec.pipelines.corrected import Solve
from iec.pipelines.levels import Levels


class IECEulerScheduler(Levels, EulerDiscreteScheduler):  # type: ignore[misc]  # ours stands before
    """Euler steps in z = x / sqrt(abar) with Iterative Error Correction (arXiv 2511.06250, Algorithm 1).

        z^(0) = z_t + (sigma_s - sigma_t) eps(z_t / sqrt(sigma_t^2 + 1), t)                               the first call of a step
        z^(k) = z^(k-1) + lambda_k (z_t + (sigma_s - sigma_t) eps(z^(k-1) / sqrt(sigma_s^2 + 1), t) - z^(k-1))          k = 1 .. K

    sigma = sqrt((1 - abar) / abar) are the noise levels. It is `IECScheduler` in other variables, without clipping: the corrected
    state is at sigma_s, and ``scale_model_input`` scales it so, while the label stays t. The arguments of EulerDiscreteScheduler
    mean what they mean there, as do those of ``set_timesteps``: fractional timesteps, Karras' levels, given sigmas. Ours are those
    of `IECScheduler`.

    * A network that predicts v or x_0 is corrected through what it predicts, F in the place of eps, with A and B of that form. For
      v: A = 1 + (sigma_s / sigma_t - 1) sigma_t^2 / (sigma_t^2 + 1), B = (sigma_s - sigma_t) / sqrt(sigma_t^2 + 1), a rotation of
      x. With zero terminal SNR diffusers has sigma = 4096 in the place of infinity.
    * Arithmetic and dtypes are EulerDiscreteScheduler's. Without corrections the result is its own, bit for bit.
    * Refused: s_churn, and pipelines that do not call ``scale_model_input``.
    """

    __init__ = constructor(EulerDiscreteScheduler)

    def require_valid(self) -> None:
        """Raises `ConfigError` for names that this scheduler does not have."""
        require_known(self.config["beta_schedule"], self.config["trained_betas"], self.config["prediction_type"])

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler that takes the place of the EulerDiscreteScheduler with this ``config``; keywords come before what it says.
        Raises `ConfigError` for any other scheduler, whose meaning would change.
        """
        if isinstance(config, Mapping):
            if not is_euler(config):
                raise ConfigError(
                    f"{config.get('_class_name') or 'This scheduler'} is not known to be EulerDiscreteScheduler. Use "
                    "iec.IECScheduler.from_config(config); if Euler's steps are meant, say so by the name: "
                    'iec.IECEulerScheduler.from_config({**config, "_class_name": "EulerDiscreteScheduler"}).'
                )
            kwargs = kept(EulerDiscreteScheduler, config) | kwargs
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None, sigmas: Any = None
    ) -> None:
        """As in EulerDiscreteScheduler; then the entries of corrected steps are repeated. Forgets an earlier run."""
        if self.before_run is not None:
            self.before_run()
        self.pending = None
        given: Any = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
        super().set_timesteps(device=device, **given)
        self.lay_out_levels(clean=bool(self.sigmas[-1] == 0), listed=timesteps is not None or sigmas is not None)
        self.is_scale_input_called = False

    def abar(self) -> np.ndarray:
        """See `Corrected.abar`: 1 / (sigma^2 + 1)."""
        return 1 / (self.beginnings() ** 2 + 1)

    def step(  # type: ignore[override]  # without the arguments of noise
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        s_churn: float = 0.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EulerDiscreteSchedulerOutput | tuple:
        """From the network's output for ``sample`` to the sample of its next call, [B, ..], in the dtype of ``model_output``.

        There is no noise in these steps: ``generator`` is taken because pipelines pass it. Raises `ConfigError` for s_churn > 0,
        and if the input of the network was not scaled.
        """
        if s_churn > 0:
            raise ConfigError("s_churn > 0 adds noise before a step, which IECEulerScheduler does not correct. Leave it at 0.")
        if not self.is_scale_input_called:
            raise ConfigError(
                "This pipeline did not call scale_model_input, so its network was given the wrong noise level. Use DDIM there: "
                "pipe.scheduler = iec.IECScheduler.from_config(config, clip_sample=False) for latents, clip_sample=True for pixels "
                "that were clipped."
            )
        new, x0 = self.advance(model_output, timestep, sample, self._euler)
        new = new.to(model_output.dtype)
        return EulerDiscreteSchedulerOutput(prev_sample=new, pred_original_sample=x0) if return_dict else (new, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """original + sigma noise, see `Levels.level_of`: inpainting puts the noised original back into the state."""
        return original_samples + noise * self.level_of(original_samples, timesteps)

    def _euler(self, i: int, _: int, z: Tensor) -> Solve:
        t, s = self.levels(i)

        def solve(output: Tensor) -> tuple[Tensor, Tensor]:
            """In EulerDiscreteScheduler's order, for the last bit."""
            if self.config["prediction_type"] == "epsilon":
                x0 = z - t * output
            elif self.config["prediction_type"] == "sample":
                x0 = output
            else:
                x0 = output * (-t / (t**2 + 1) ** 0.5) + (z / (t**2 + 1))
            return z + (z - x0) / t * (s - t), x0

        return solve
