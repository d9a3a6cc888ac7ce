"""A corrector between the calls of a pipeline: its hooks in the steps of `iec.IECScheduler`."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from iec.errors import ConfigError
from iec.sampling.corrector import Corrector, Taken
from iec.sampling.ddim import Sampler
from iec.sampling.network import Step
from iec.sampling.timetable import NoiseSchedule, Timetable

TOLERANCE = 1e-4
"""Between abar here and diffusers' float32 one, relative."""


def require_pipeline(corrector: Corrector) -> None:
    """Raises `ConfigError` for a corrector that a pipeline's loop cannot have: one that is not fitted, and one that tells the
    network another timestep or makes steps again.
    """
    own, name = type(corrector), type(corrector).__name__
    if own.calibration_calls is not Corrector.calibration_calls:
        raise ConfigError(
            f"{name} has to be fitted first, for these timesteps: give  iec.correctors.prepare.fitted(sampler, model, "
            "network).corrector  of a Sampler(timetable, corrector=...)."
        )
    if not corrector.keeps_timesteps or own.restarts is not Corrector.restarts:
        raise ConfigError(
            f"{name} tells the network other timesteps, or makes steps again, and a pipeline's calls are laid out before its run. "
            "Use it with iec.sample(model, .., corrector=...)."
        )


def schedule_of(config: Any, abar: Tensor) -> NoiseSchedule:
    """The noise schedule of a scheduler with this ``config`` and abar [num_train_timesteps], for a corrector. Raises `ConfigError`
    for one that a corrector does not know, and for steps that are not A x + B eps.
    """
    if config["prediction_type"] != "epsilon" or config["clip_sample"] or config["thresholding"]:
        raise ConfigError(
            f"A corrector acts on steps A x + B eps, and here prediction_type={config['prediction_type']}, "
            f"clip_sample={config['clip_sample']}, thresholding={config['thresholding']}. Give clip_sample=False and "
            "thresholding=False where the network predicts epsilon, and no corrector elsewhere."
        )
    kind, ends = config["beta_schedule"], (config["beta_start"], config["beta_end"])
    if kind in ("linear", "scaled_linear"):
        schedule = NoiseSchedule(kind, *ends, num_timesteps=config["num_train_timesteps"])
        if np.allclose(schedule.abar, abar.cpu().double().numpy(), rtol=TOLERANCE, atol=0):
            return schedule
    raise ConfigError(
        f"The betas of this scheduler (beta_schedule={kind}) are not those of linear or scaled_linear, which correctors know. "
        "Leave the corrector out."
    )


@dataclass(frozen=True)
class Hooks:
    """corrector: with the hooks ``eps``, ``before`` and ``after``. table: of the run. begun: the step between its first call and
    its last one, as far as it is known. last: the step before.
    """

    corrector: Corrector
    table: Timetable
    begun: Taken | None = None
    last: Taken | None = None

    def begin(self, step: Step, x: Tensor, output: Tensor, eta: float, z: Tensor | None) -> tuple["Hooks", Tensor]:
        """With the step begun, and the x_t [B, C, H, W] that it starts from. Raises `ConfigError`, at the first step, for what the
        corrector does not take.
        """
        table, i = replace(self.table, eta=eta), step.index
        if self.last is None:
            self.corrector.attach(Sampler(table), tuple(x.shape[1:]))
        if table.is_noop(i):
            return self, x
        x = self.corrector.before(x, self.corrector.eps(output, step, table), step, table, self.last)
        fixed = float(table.A[i]) * x
        if z is not None:
            fixed = fixed + float(table.sigma[i]) * z.to(x)
        return replace(self, table=table, begun=Taken(i, x, fixed, fixed, float(table.B[i]))), x

    def eps(self, output: Tensor, step: Step) -> Tensor:
        """What becomes of the network's answer in a call of the step."""
        return output if self.table.is_noop(step.index) else self.corrector.eps(output, step, self.table)

    def end(self, new: Tensor) -> tuple["Hooks", Tensor]:
        """With the step that ended in ``new`` as the last one, and the state after it."""
        if self.begun is None:
            return self, new
        taken = replace(self.begun, new=new)
        return replace(self, begun=None, last=taken), self.corrector.after(taken, self.table)
