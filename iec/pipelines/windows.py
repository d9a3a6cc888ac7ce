"""Steps under a pipeline whose loop counts calls: what its arguments say of steps is put in calls, and callbacks are told steps."""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from iec.errors import ConfigError
from iec.pipelines.bound import bind
from iec.pipelines.corrected import Corrected
from iec.pipelines.run import Run


@dataclass(frozen=True)
class Border:
    """An argument of a pipeline that says at which step something begins or ends, as a share of the steps.

    reached: (step i, steps T, value) -> whether step i is at or behind the border, in a run without corrections. shift: half a
    call, before or behind the entry where the border has to be, so that no rounding moves it. calls: whether the pipeline
    multiplies the value by the number of its calls, and not by what it takes for the number of steps.
    """

    reached: Callable[[int, int, float], bool]
    shift: float
    calls: bool

    def moved(self, run: Run, value: float) -> float:
        """The value with which the loop over the calls of ``run`` has the border before the first call of the same step."""
        steps = len(run.timesteps)
        step = next((i for i in range(steps) if self.reached(i, steps, value)), steps)
        moved = (run.first_call(step) + self.shift) / (len(run.calls) if self.calls or run.listed else steps)
        return min(max(moved, 0.0), 1.0) if self.calls else moved


BORDERS = {
    "skip_layer_guidance_start": Border(lambda i, steps, start: i > steps * start, -0.5, False),  # SD3
    "skip_layer_guidance_stop": Border(lambda i, steps, stop: i >= steps * stop, -0.5, False),
    "control_guidance_start": Border(lambda i, steps, start: i / steps >= start, -0.5, True),  # ControlNets
    "control_guidance_end": Border(lambda i, steps, end: (i + 1) / steps > end, 0.5, True),
    "adapter_conditioning_factor": Border(lambda i, steps, factor: i >= int(steps * factor), 0.5, False),  # T2I-adapter
    "gligen_scheduled_sampling_beta": Border(lambda i, steps, beta: i >= int(steps * beta), 0.5, True),  # GLIGEN
    "cfg_trunc_ratio": Border(lambda i, steps, ratio: (i + 1) / steps > ratio, 0.5, True),  # Lumina2
}
OPEN = {"control_guidance_start": 0.0, "control_guidance_end": 1.0, "adapter_conditioning_factor": 1.0}
"""The values at which a window is as wide as any run."""

COUNTED = frozenset({"sld_warmup_steps", "edit_warmup_steps", "edit_cooldown_steps", "max_iter_to_alter"})
"""Numbers of steps in deprecated pipelines of diffusers (safe, semantic, attend-and-excite), which are not translated."""


def count_steps(pipe: Any, scheduler: Corrected) -> Callable[[], None]:
    """Let ``pipe(..)`` mean steps where its loop counts calls, while ``scheduler``, which repeats timesteps, is its own. Returns
    what takes it off.

    Python looks for a call in the class, so the pipeline gets one of its own, of the same name. It translates

    * `BORDERS`: what has a window is on in the steps where it is on without corrections, in all calls of a step or in none;
    * ``callback_on_step_end`` and ``callback``: called once a step, after its last correction, with the number of the step;
      ``pipe.num_timesteps`` is then the number of steps;
    * what ``pipe.guider`` (guiders of diffusers, with their start and stop) is told of the step.
    """
    theirs: Callable[..., Any] = type(pipe).__call__

    @functools.wraps(theirs)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.scheduler is not scheduler:
            return theirs(self, *args, **kwargs)
        bound = inspect.signature(theirs).bind(self, *args, **kwargs)
        bound.apply_defaults()
        bound.arguments.update(in_calls(scheduler, bound.arguments))
        with _told_steps(getattr(self, "guider", None), scheduler):
            return theirs(*bound.args, **bound.kwargs)

    return bind(pipe, __call__=__call__)


def in_calls(scheduler: Corrected, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a pipeline's ``arguments`` that speak of steps, for its loop over calls. Raises `ConfigError` for a window in a run
    that leaves out steps at its beginning or end, where the share is one of the steps left, and for what is not translated.
    """
    counted = sorted(COUNTED & arguments.keys())
    if counted:
        raise ConfigError(
            f"This pipeline counts the calls of its network as steps ({', '.join(counted)}), and corrections add calls. Use "
            "placement='none'."
        )
    given = {name: value for name, value in arguments.items() if value is not None}
    if given.get("use_dynamic_cfg") and "timesteps" in given:
        raise ConfigError(
            "use_dynamic_cfg divides by the number of steps, and with listed timesteps CogVideoX takes that of the calls for it. "
            "Use num_inference_steps, or use_dynamic_cfg=False."
        )
    in_use = {"skip": "skip_guidance_layers" in given, "control": all(0 <= start < end <= 1 for start, end in _control(given))}
    names = [name for name in BORDERS if name in given and in_use.get(name.split("_")[0], True)]  # diffusers refuses wrong windows
    if given.get("strength", 1) < 1 or given.keys() & {"denoising_start", "denoising_end"}:
        narrow = [name for name in names if set(_listed(given[name])) != {OPEN.get(name)}]
        if narrow:
            raise ConfigError(
                f"{', '.join(narrow)} would be counted in calls of the network, since this run leaves steps out (strength, "
                "denoising_start, denoising_end). Run all steps, leave that argument at its default, or use placement='none'."
            )
        names = []
    run = _laid_out(scheduler, given) if names else Run((), (), False)
    changed = {name: _mapped(functools.partial(BORDERS[name].moved, run), given[name]) for name in names}
    if "control_guidance_start" in changed:
        apart = 0.25 / len(run.calls)  # diffusers wants an end behind the beginning, also where no step lies within
        windows = [(start, max(end, start + apart)) for start, end in _control(changed)]
        several = isinstance(given["control_guidance_start"], list) or isinstance(given["control_guidance_end"], list)
        for i, name in enumerate(("control_guidance_start", "control_guidance_end")):
            changed[name] = [window[i] for window in windows] if several else windows[0][i]
    return changed | _callbacks(scheduler, given)


def _laid_out(scheduler: Corrected, given: Mapping[str, Any]) -> Run:
    """The run that these arguments will lay out. The pipeline may pass other noise levels, whose calls are the same."""
    trial: Any = copy.copy(scheduler)
    trial.before_run = None
    taken = inspect.signature(trial.set_timesteps).parameters.keys()  # what is not, diffusers refuses
    values: dict[str, Any] = {name: given[name] for name in ("timesteps", "sigmas") if name in given.keys() & taken}
    values = values or {"num_inference_steps": given.get("num_inference_steps")}
    trial.set_timesteps(**values, **({"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}))
    return trial.run


def _callbacks(scheduler: Corrected, given: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    callback = given.get("callback_on_step_end")
    if callback is not None:
        changed["callback_on_step_end"] = _once_a_step(scheduler, callback)
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):  # which tell the pipeline what they need
        changed["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
    rest: dict[str, Any] = given.get("kwargs", {})  # where the callback of Stable Diffusion is, as it is deprecated there
    told: Mapping[str, Any] = given if "callback" in given else rest
    older, interval = told.get("callback"), told.get("callback_steps")
    if older is not None and type(interval) is int and interval > 0:  # anything else is refused by diffusers
        every = {"callback": _every(scheduler, older, interval), "callback_steps": 1}
        changed |= {"kwargs": rest | every} if told is rest else every
    return changed


@contextmanager
def _told_steps(guider: Any, scheduler: Corrected) -> Iterator[None]:
    """``guider.set_state`` gets the step and the number of steps in the place of those of calls. guider: may be None."""
    if guider is None:
        yield
        return
    theirs = guider.set_state

    def set_state(step: int, num_inference_steps: int, timestep: Any) -> None:
        calls, entry = scheduler.run.calls, scheduler.position or 0
        first = sum(k == 0 for _, k in calls[: entry - step])  # steps before the run
        i = sum(k == 0 for _, k in calls[: entry + 1]) - 1
        theirs(step=i - first, num_inference_steps=len(scheduler.run.timesteps) - first, timestep=timestep)

    guider.set_state = set_state
    try:
        yield
    finally:
        del guider.set_state


def _once_a_step(scheduler: Corrected, callback: Callable[..., Any]) -> Callable[..., Any]:
    """``callback_on_step_end``: (pipe, entry, t, tensors) -> what it changes of the tensors."""
    counter = itertools.count()

    def after_call(pipe: Any, entry: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not scheduler.ended:
            return {}
        step = next(counter)
        if step == 0 and hasattr(pipe, "_num_timesteps"):  # entries, until now
            begin = (scheduler.position or 0) - entry - 1
            pipe._num_timesteps = sum(k == 0 for _, k in scheduler.run.calls[begin : begin + pipe._num_timesteps])
        return callback(pipe, step, t, tensors)

    return after_call


def _every(scheduler: Corrected, callback: Callable[..., Any], interval: int) -> Callable[..., None]:
    """``callback`` of older pipelines, (step, t, latents), after the steps 0, ``interval``, 2 ``interval`` .."""
    counter = itertools.count()

    def after_call(_: int, t: Any, latents: Any) -> None:
        step = next(counter) if scheduler.ended else None
        if step is not None and step % interval == 0:
            callback(step, t, latents)

    return after_call


def _control(given: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The windows of the ControlNets, of which there may be several; a number is that of all of them."""
    if "control_guidance_start" not in given or "control_guidance_end" not in given:
        return []
    edges = [_listed(given[f"control_guidance_{edge}"]) for edge in ("start", "end")]
    count = max(map(len, edges))
    return list(zip(*(edge if len(edge) == count else edge * count for edge in edges), strict=True))


def _mapped(function: Callable[[float], float], value: Any) -> Any:
    """Of a number, or of each in a list."""
    return [function(item) for item in value] if isinstance(value, list) else function(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
