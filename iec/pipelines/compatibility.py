"""Which scheduler of ours can take the place of one of diffusers, by its configuration.

``from_config`` of diffusers drops what it does not know, and every value that the old scheduler had by default, even where the new
one has another default. Both are silent. Here the values of the noise schedule are kept, and what DDIM would drop is refused.
"""

import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from iec.errors import ConfigError

DDIM_KEYS = frozenset(inspect.signature(DDIMScheduler).parameters)
EULER_KEYS = frozenset(inspect.signature(EulerDiscreteScheduler).parameters)
DDIM_ALONE = DDIM_KEYS - EULER_KEYS
"""Who sets one of these means DDIM."""
PREDICTIONS = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
DROPPED: dict[str, tuple[tuple[object, ...], str]] = {
    "original_inference_steps": ((None,), "it belongs to a distilled sampler (LCM, TCD), whose few steps DDIM cannot take"),
    "snr_shift_scale": (
        (None, 1.0),
        "it changes the noise schedule (CogVideoXDDIMScheduler is accepted where its name is known: "
        '{**config, "_class_name": "CogVideoXDDIMScheduler"})',
    ),
    "use_flow_sigmas": ((None, False), "it belongs to a flow-matching network, for which there is iec.IECFlowMatchScheduler"),
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
        ((None, False), "DDIM spaces its steps by timesteps"),
    ),
    "timestep_type": ((None, "discrete"), "DDIM's timesteps are whole numbers"),
    **dict.fromkeys(("sigma_min", "sigma_max"), ((None,), "DDIM's noise levels are those of the timesteps")),
}
"""Values that change the result and that DDIM does not have: key -> the values that it may have, and why not another one."""
SOLVERS = {
    **{"solver_order": "a multistep or singlestep solver (DPM-Solver, UniPC, DEIS)", "predictor_order": "SASolverScheduler"},
    "use_karras_sigmas": "a solver of higher order (Heun, KDPM2, LMS)",
}
"""Keys of schedulers that take another kind of step than DDIM, and what to call them where their class is not known."""
OWN_KIND = ("DDIMScheduler", "DDIMParallelScheduler", "IECScheduler")
SAME_STEP = (
    *OWN_KIND,
    *("DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler", "CogVideoXDDIMScheduler"),
    *("EulerDiscreteScheduler", "IECEulerScheduler"),
)
"""The schedulers in whose place DDIM is expected: its own kind, those that networks are published with, and Euler's, which is DDIM
in other variables. Whole names: DDIMInverseScheduler is none of them."""


def for_ddim(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values for a DDIM scheduler in the place of the one with this ``config``: the noise schedule and all that DDIM shares.

    given: what the user sets beside it; these come first. Setting a value that DDIM would drop says that it may go, and setting
    one that DDIM alone has says that DDIM is meant. Raises `ConfigError` for a scheduler that DDIM cannot stand in for, or of
    another kind of step, and for a missing ``clip_sample``. Warns where DDIM is meant in the place of another kind of step.
    """
    name = config.get("_class_name")  # of a scheduler that was loaded; one that was built in code does not tell it
    if str(name).startswith("CogVideoXDDIM") and "snr_shift_scale" not in given:
        config = {**config, **_own_betas(config)}
    merged = {**config, **given}
    who = name or "This scheduler"
    _require_noise_schedule(merged, who)
    # Any scheduler that was made from the configuration of DDIM has the keys of DDIM: where its name is known, the name decides.
    is_ddim = config.keys() >= DDIM_KEYS and name in (None, *OWN_KIND)
    untold = EULER_KEYS if name is None and config.keys() >= EULER_KEYS else {"original_inference_steps"}
    for key, (allowed, reason) in DROPPED.items():
        if is_ddim and (key not in untold or name is not None):
            continue  # made into a DDIM scheduler before, which keeps foreign keys without using them
        if merged.get(key) not in allowed:
            raise ConfigError(
                f"{who} has {key}={merged[key]!r}, which DDIM would drop: {reason}. If plain DDIM is meant, say so: "
                f"IECScheduler.from_config(config, {key}={allowed[-1]!r})."
            )
    solver = None if is_ddim else _solver(config, name)
    if solver is not None and not given.keys() & (DDIM_ALONE | DROPPED.keys()):
        what = "a solver of another kind than DDIM" if solver == name else solver
        why = "Its step is not A x + B F of one call, so it cannot be corrected"
        if "Inverse" in who:
            what, why = "an inversion", "It runs from an image to its noise, and IEC corrects steps from noise to an image"
        raise ConfigError(
            f"{who} is {what}. {why}. If plain DDIM is meant, of first order and perhaps with more steps, say so: "
            "IECScheduler.from_config(config, clip_sample=False) for latents, clip_sample=True for pixels that were clipped."
        )
    values = {key: merged[key] for key in DDIM_KEYS if key in merged}
    if "snr_shift_scale" in merged and not is_ddim:  # part of the betas by now, or to go
        values["snr_shift_scale"] = None
    if "clip_sample" not in values:
        if "skip_prk_steps" not in config and name != "PNDMScheduler":  # which clips nothing
            raise ConfigError(
                f"{who} has no clip_sample, and DDIM clips x_0 to [-1, 1] by default. Say which is meant: "
                "IECScheduler.from_config(config, clip_sample=False) for latents, clip_sample=True for pixels that were clipped."
            )
        values["clip_sample"] = False
    if not is_ddim:
        if "set_alpha_to_one" not in values and merged.get("final_sigmas_type") == "sigma_min":
            values["set_alpha_to_one"] = False
        if solver is not None:
            warnings.warn(
                f"The steps of {solver} become those of DDIM, of first order; more of them may be needed.",
                UserWarning,
                stacklevel=3,
            )
    return values


def require_known(beta_schedule: str, trained_betas: object, prediction_type: str) -> None:
    """Raises `ConfigError` for names that DDIM does not have."""
    if prediction_type not in PREDICTIONS:
        raise ConfigError(f"prediction_type={prediction_type!r} is not DDIM's; choose epsilon, sample or v_prediction.")
    if trained_betas is None and beta_schedule not in BETA_SCHEDULES:
        raise ConfigError(
            f"beta_schedule={beta_schedule!r} is not DDIM's. Choose {', '.join(BETA_SCHEDULES)}, or give the betas themselves: "
            "trained_betas=[..]."
        )


def require_signal(prediction_type: str, silent: bool) -> None:
    """Raises `ConfigError` for a run of noise predictions with a timestep where nothing is left of the image (``silent``)."""
    if silent and prediction_type == "epsilon":
        raise ConfigError(
            "At the noisiest timestep the image has no part (rescale_betas_zero_snr), and the noise alone does not tell x_0: DDIM "
            "gives NaN there. Set rescale_betas_zero_snr=False, or, for a network that was trained so, "
            "prediction_type='v_prediction' and clip_sample=False."
        )


def _own_betas(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes DDIM of the CogVideoXDDIMScheduler with this ``config``: the betas of its noise schedule, which it shifts and
    rescales by abar, not by betas; and no clipping, which it never does.
    """
    abar = CogVideoXDDIMScheduler.from_config(config).alphas_cumprod
    betas = 1 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    return {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False, "snr_shift_scale": None, "clip_sample": False}


def _require_noise_schedule(merged: Mapping[str, Any], who: str) -> None:
    if merged.get("trained_betas") is not None:
        return
    if merged.get("beta_schedule") is None:
        raise ConfigError(
            f"{who} has no beta_schedule and no trained_betas (flow matching, EDM, VE ..), so DDIM cannot take its place. For "
            "flow matching use iec.IECFlowMatchScheduler.from_config(config). Else use a pipeline whose network predicts the noise "
            "of a DDPM, or give the betas that it was trained with: trained_betas=[..]."
        )
    ends = [key for key in ("beta_start", "beta_end") if merged.get(key) is None]
    if ends and merged["beta_schedule"] != "squaredcos_cap_v2":
        raise ConfigError(f"{who} has no {' and no '.join(ends)}. Give the values that the network was trained with.")


def _solver(config: Mapping[str, Any], name: str | None) -> str | None:
    """What takes another kind of step than DDIM, by name or kind; None for those that do not."""
    if name is None:
        return next((kind for key, kind in SOLVERS.items() if key in config and "interpolation_type" not in config), None)
    return None if name in SAME_STEP else name


def is_euler(config: Mapping[str, Any]) -> bool:
    """Whether this is the configuration of an EulerDiscreteScheduler, or of ours. One that was made in code from DDIM's, or DDIM's
    from it, has the keys of both and no name; it is taken for DDIM's.
    """
    name = config.get("_class_name")
    if name is not None:
        return str(name).startswith(("EulerDiscrete", "IECEuler"))
    return config.keys() >= EULER_KEYS and not config.keys() >= DDIM_KEYS


def plain(value: Any) -> Any:
    """A value of a configuration as JSON stores it: numbers of Python, lists."""
    if hasattr(value, "tolist"):  # of NumPy and torch, arrays and numbers
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
