"""IEC as a scheduler of flow-matching pipelines (SD3, FLUX, Sana, Wan ..), as the scheduler of diffusers that they have.

pipe.scheduler = iec.IECFlowMatchScheduler.from_config(pipe.scheduler.config)
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # where it is missing, saved pipelines cannot be loaded
from torch import Tensor

from iec.errors import ConfigError
from iec.pipelines.constructor import constructor, kept
from iec.pipelines.corrected import Solve
from iec.pipelines.levels import Levels

FLOW_KEYS = frozenset(inspect.signature(FlowMatchEulerDiscreteScheduler).parameters)


class IECFlowMatchScheduler(Levels, FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # ours stands before
    """Euler steps of a velocity field with Iterative Error Correction: A = 1, B = s - t (arXiv 2511.06250, Algorithm 1).

        x^(0) = x_t + (s - t) F(x_t, t)                                                       the first call of a step
        x^(k) = x^(k-1) + lambda_k (x_t + (s - t) F(x^(k-1), t) - x^(k-1))                    correction k = 1 .. K

    t and s are the noise levels ``sigmas``, 1 is noise. The arguments of FlowMatchEulerDiscreteScheduler mean what they mean there,
    and so do those of ``set_timesteps``: given sigmas are shifted, ``mu`` belongs to use_dynamic_shifting. preset, iterations (K),
    lambdas, tolerance, criterion, norm, placement, fraction, count, steps, cached_steps: as for `IECScheduler`.

    * last_step: ``skip`` by default, unlike in the paper. The corrected state of the step that ends at s = 0 has no noise left, and
      the network is told t: a perfect one then says of it 0, and lambda puts back lambda times all that the step removed,
      lambda t in the image. On Gaussian data of standard deviation 0.1 (shift 3, T = 4, sampled from one standard deviation) that
      is 0.277 in the place of 0.011. ``correct`` corrects this step like any other.
    * evaluate_at: the label that F gets in a correction. ``t`` is IEC. ``s`` is Heun's rule (with K = 1 and lambda 0.5; never at
      the last step), a control with the same calls on the same noise levels.
    * Pipelines that pass sigmas or timesteps take the number of entries for the number of steps: ``order`` is 1 there, and with
      ``strength`` < 1 they need the same number of calls in every step (last_step="correct", placement="all_steps" or "none"; else
      refused, `ConfigError`). Where they then begin at the entry of a correction, it is the first call of its step, which has
      fewer corrections: the noise level is that of the same run without corrections.
    * Arithmetic and dtypes are FlowMatchEulerDiscreteScheduler's. Without corrections the result is its own, bit for bit.
    * Refused: stochastic_sampling and per_token_timesteps.
    """

    __init__ = constructor(FlowMatchEulerDiscreteScheduler, last_step="skip", evaluate_at="t")

    def require_valid(self) -> None:
        """Raises `ConfigError` for stochastic_sampling."""
        if self.config["stochastic_sampling"]:
            raise ConfigError(
                "stochastic_sampling=True noises x_0 anew in every step, which is not the step that is corrected here. If plain "
                "Euler steps are meant, say so: stochastic_sampling=False."
            )

    def prepare(self) -> None:
        """See `Corrected.prepare`."""
        super().prepare()
        self.whole_run = self.run  # from its first entry on

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler that takes the place of the FlowMatchEulerDiscreteScheduler with this ``config``; keywords come before what
        it says. Raises `ConfigError` for any other scheduler, whose meaning would change. (A shift that was set by ``set_shift`` is
        in no configuration: give it, shift=..)
        """
        if isinstance(config, Mapping):
            require_flow_euler(config)
            kwargs = kept(FlowMatchEulerDiscreteScheduler, config) | kwargs
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """As in FlowMatchEulerDiscreteScheduler; then the entries of corrected steps are repeated. Forgets an earlier run."""
        if self.before_run is not None:
            self.before_run()
        self.pending = None
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu, timesteps=timesteps)
        self.lay_out_levels(clean=True, listed=sigmas is not None or timesteps is not None)
        self.whole_run = self.run

    def abar(self) -> np.ndarray:
        """See `Corrected.abar`: (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2)."""
        noise = self.beginnings()
        return (1 - noise) ** 2 / ((1 - noise) ** 2 + noise**2)

    def begin(self, entry: int) -> int:
        """See `Corrected.begin`; the entry of a correction becomes the first call of its step where pipelines count entries."""
        whole = self.whole_run
        if whole.listed and len(set(whole.sizes)) == 1 and 0 <= entry < len(whole.calls):
            self.run = whole.beginning_at(entry)
        return super().begin(entry)

    def step(  # type: ignore[override]  # without the arguments of noise, which theirs ignores
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        generator: torch.Generator | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple:
        """From the velocity at ``sample`` to the sample of its next call, [B, ..], in the dtype of ``model_output``.

        There is no noise in these steps: ``generator`` is taken because pipelines pass it. Raises `ConfigError` for
        per_token_timesteps (LTX), where every token is at a level of its own.
        """
        if per_token_timesteps is not None:
            raise ConfigError(
                "per_token_timesteps (LTX-Video with conditioning frames) puts every token at a noise level of its own, which "
                "IECFlowMatchScheduler does not correct. Give that pipeline its FlowMatchEulerDiscreteScheduler back."
            )
        (new,) = self.advance(model_output, timestep, sample, self._euler)
        new = new.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=new) if return_dict else (new,)  # type: ignore[arg-type]

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """sigma noise + (1 - sigma) sample, see `Levels.level_of`: inpainting puts the noised original back into the state."""
        sigma = self.level_of(sample, timestep)
        return sigma * noise + (1.0 - sigma) * sample

    def _euler(self, i: int, _: int, x: Tensor) -> Solve:
        t, s = self.levels(i)
        return lambda velocity: (x + (s - t) * velocity,)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of a scheduler for flow-matching networks, whatever its steps are."""
    name = str(config.get("_class_name") or "")
    return name.startswith(("FlowMatch", "IECFlowMatch")) or bool(config.get("use_flow_sigmas"))


def require_flow_euler(config: Mapping[str, Any]) -> None:
    """Raises `ConfigError` unless this is the configuration of a FlowMatchEulerDiscreteScheduler, or of ours."""
    name = str(config.get("_class_name") or "")  # one that was built in code does not tell it
    who = name or "This scheduler"
    if name.startswith("FlowMatchLCM") or "scale_factors" in config:
        raise ConfigError(
            f"{who} is FlowMatchLCMScheduler: a distilled sampler, which noises x_0 anew in every step. Use it as it is; for a "
            "network that was not distilled, start from a FlowMatchEulerDiscreteScheduler."
        )
    if config.get("use_flow_sigmas") or "flow_shift" in config:
        raise ConfigError(
            f"{who} is a multistep solver (UniPC, DPM-Solver ..), whose steps use the calls before; repeated calls would spoil "
            "them. If plain Euler steps are meant, say so, with the shift that this pipeline has: "
            f"iec.IECFlowMatchScheduler(shift={config.get('flow_shift', 1.0)})."
        )
    if config.get("beta_schedule") is not None or config.get("trained_betas") is not None:
        raise ConfigError(f"{who} has a noise schedule of betas, not one of a flow. Use iec.IECScheduler.from_config(config).")
    if not (name.startswith(("FlowMatchEuler", "IECFlowMatch")) or (not name and config.keys() >= FLOW_KEYS)):
        raise ConfigError(
            f"{who} is not FlowMatchEulerDiscreteScheduler, whose steps are corrected here. If its steps are meant, say so: "
            "iec.IECFlowMatchScheduler(shift=..). evaluate_at='s' makes them Heun's, as those of FlowMatchHeunDiscreteScheduler."
        )
