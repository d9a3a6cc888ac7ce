"""Correction, caching and quantization under an ordinary pipeline of diffusers, and off again.

with iec.apply(pipe, correction=iec.Correction(), cache=iec.CachingConfig(interval=5)):
    images = pipe("a photo of a cat", num_inference_steps=50).images
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

from torch import nn

from iec.efficiency.caching import CachedUNetNetwork, Kind, find_cut
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.caching.forecast import Forecast
from iec.efficiency.caching.forecast_config import ForecastConfig
from iec.efficiency.integer import require_kernels, require_machine, with_kernels
from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedUNet, calibrate, quantize_unet, reconstruct
from iec.efficiency.quantization.selection import require_units
from iec.errors import ConfigError, require_type
from iec.io.progress import reported
from iec.models.unet import UNetNetwork
from iec.pipelines.applied import HANDLE, Applied, exchange
from iec.pipelines.compatibility import for_ddim, is_euler
from iec.pipelines.copies import QuantizedCopy, share_hooks
from iec.pipelines.corrected import Corrected
from iec.pipelines.flow import IECFlowMatchScheduler, is_flow
from iec.pipelines.other_caches import keep_states, require_no_cache
from iec.pipelines.scheduler import IECScheduler
from iec.pipelines.unet import Forward, restorer
from iec.pipelines.wrappers import plain_network, require_repeatable
from iec.sampling.correction import Correction
from iec.sampling.corrector import NO_CORRECTOR, Corrector
from iec.sampling.network import Network
from iec.sampling.placement import Placement


def apply(
    pipe: Any,
    *,
    correction: Correction | None = None,
    placement: Placement | None = None,
    corrector: Corrector = NO_CORRECTOR,
    cache: CachingConfig | None = None,
    quantize: PTQConfig | None = None,
    calibration: Mapping[str, Any] | None = None,
    kernels: str = "simulated",
) -> Applied:
    """Put IEC under a pipeline, feature caching (DeepCache) where its network is a UNet, and quantization where it is a UNet or the
    transformer of DiT, PixArt, SD3, FLUX or Sana.

    * correction, placement: see `IECScheduler`; ``IECScheduler.from_config`` says which schedulers it can replace. Euler keeps its
      variables and noise levels (`IECEulerScheduler`). Flow matching is corrected by `IECFlowMatchScheduler`; without a placement
      its last step is left out. If the pipeline has a VAE and its scheduler has no ``clip_sample``, x_0 is not clipped. With a
      correction and no placement all eligible steps are corrected.
      With neither no step is, unless the pipeline's scheduler already is one of ours: then its own correction, placement and
      corrector stay.
    * corrector: see `IECScheduler.from_config`. Euler becomes DDIM with one.
    * cache: the interval counts sampling steps; calls that corrections and guidance add do not count. A correction at a refresh
      step runs the full network, and ``correction.cache_from`` says whose feature is stored. ``placement.cached_steps`` says what
      happens at cached steps. cut None: ``latent`` for a pipeline with a VAE, else ``pixel``. Features are reused or forecast.
    * quantize: the activation scales of each step are calibrated on a run of the pipeline itself, in float, without corrections,
      with the cache if there is one: ``pipe(**calibration)``, e.g. ``{"prompt": [..], "generator":
      torch.Generator().manual_seed(0), "num_inference_steps": 50}``. This run has to call the network on ``calibration_images``
      inputs in each step; guidance makes two inputs of one image. Later runs must have the same timesteps.
      Of SD3, FLUX and Sana the layers of `iec.efficiency.quantization.selection` are quantized, the others stay float.
    * kernels: of the quantized UNet. ``simulated`` computes in float arithmetic on the grid; ``int8`` on 8-bit integers, with
      compiled passes between them; ``int8_unfused`` without. On integers the UNet stays on the device where it was calibrated.

    With a correction, what the pipeline's call says of steps keeps its meaning: windows of guidance and ControlNets, and callbacks,
    which come once a step (`iec.pipelines.windows`).

    Works for pipelines that call their network once for each entry of ``scheduler.timesteps`` (with guidance on one doubled
    batch; without a cache, also in two calls). Hooks and wrappers on the UNet, put on before or after, either work or are refused
    by name, at the latest at the next call. So are switches of a quantized UNet. With a cache the UNet's repeated blocks can be
    compiled, with quantization nothing.
    Without cache and quantize only the scheduler is exchanged; then the network need not be a UNet (DiT, SD3, FLUX ..). Caches of
    diffusers on a transformer are kept (docs/caches.md), and ``placement.cached_steps`` says what happens in steps that they cache.
    ``save_pretrained`` saves the scheduler, but no cache and no quantization: call `remove` before.
    Raises `ConfigError`, or `DeviceError` where the kernels do not run, and then changes nothing.
    """
    _require_types(pipe, correction, placement, corrector, cache, quantize, calibration)
    _require_together(pipe, quantize, calibration, kernels)
    scheduler = _scheduler(pipe, correction, placement, corrector)
    if cache is None and quantize is None:
        return _corrected_alone(pipe, scheduler)
    require_repeatable(pipe)
    require_no_cache(pipe)
    scheduler.before_run = lambda: require_no_cache(pipe)
    unet = plain_network(pipe, quantize=quantize is not None, cache=cache is not None)
    cut = None if cache is None else _cut(pipe, unet, cache)
    if cache is not None:
        scheduler.refresh_of = cache.steps_of
    if quantize is not None and cache is not None and scheduler.placement.cached_steps == "full":
        raise ConfigError(
            "cached_steps='full' makes full calls at cached steps, for which the deep layers of a quantized network are not "
            "calibrated. Use cached_steps='cached' or 'skip'."
        )
    forecast, cache_from = cache or ForecastConfig(), (correction or Correction()).cache_from
    if quantize is not None:
        require_units(unet, quantize)
    undo: list[Callable[[], object]] = [restorer(unet)]
    try:
        if quantize is None or calibration is None:
            forward = Forward(unet, scheduler, cut, forecast, cache_from)
        else:
            require_machine(kernels, next(unet.parameters()).device, None)
            calls, seen = _record(pipe, unet, scheduler, cut, forecast, quantize, calibration)
            scheduler.placement.resolve(len(calls))  # refuses steps that are not there, before they are calibrated
            timesteps = tuple(call.step.timestep for call in calls)
            calibrated = _calibrated(unet, quantize, cut, seen, calls)
            quantized = with_kernels(calibrated, kernels, None)
            copy = QuantizedCopy(unet, quantized.unet)
            forward = Forward(quantized.unet, scheduler, cut, forecast, cache_from, quantized, copy, timesteps)
    except BaseException:
        undo.pop()()
        raise
    return exchange(pipe, scheduler, forward, undo)


def remove(pipe: Any) -> None:
    """Take off what `apply` put under this pipeline; nothing happens if there is nothing."""
    applied = getattr(pipe, HANDLE, None)
    if applied is not None:
        applied.remove()


def _require_types(pipe: Any, correction: Any, placement: Any, corrector: Any, cache: Any, quantize: Any, calibration: Any) -> None:
    if not hasattr(getattr(pipe, "scheduler", None), "config"):
        raise ConfigError(f"{type(pipe).__name__} is no pipeline of diffusers: it has no scheduler. Give the pipeline itself.")
    require_type("corrector", corrector, Corrector, "one of iec.correctors, e.g. UniC()")
    for name, value, kind, way_out in (
        ("correction", correction, Correction, "iec.Correction()"),
        ("placement", placement, Placement, 'e.g. iec.Placement("all_steps")'),
        ("cache", cache, CachingConfig, "e.g. iec.CachingConfig(interval=5)"),
        ("quantize", quantize, PTQConfig, "e.g. iec.PTQConfig(calibration_images=8)"),
        ("calibration", calibration, Mapping, 'the arguments of a run, e.g. {"prompt": ["a cat"]}'),
    ):
        if value is not None:
            require_type(name, value, kind, way_out)


def _require_together(pipe: Any, quantize: PTQConfig | None, calibration: Mapping[str, Any] | None, kernels: str) -> None:
    """Raises `ConfigError` for arguments that do not go together, and for a pipeline that has something applied to it."""
    if getattr(pipe, HANDLE, None) is not None:
        raise ConfigError("This pipeline already has something applied to it. Call iec.remove(pipe) first.")
    if (quantize is None) != (calibration is None):
        raise ConfigError("quantize and calibration belong together: give both, or neither.")
    if quantize is not None:
        require_kernels(kernels, quantize)
    elif kernels != "simulated":
        raise ConfigError(f"kernels={kernels!r} are of a quantized network. Give quantize and calibration too, or leave it out.")


def _corrected_alone(pipe: Any, scheduler: Corrected) -> Applied:
    """The scheduler exchanged; the network stays, with its caches."""
    states: list[Callable[[], object]] = []
    if scheduler.placement.kind != "none":
        require_repeatable(pipe)
        states = keep_states(pipe, scheduler)
    applied = exchange(pipe, scheduler, None, [])
    applied.undo.extend(states)  # the first to go, and to refuse it
    return applied


def _scheduler(pipe: Any, correction: Correction | None, placement: Placement | None, corrector: Corrector) -> Any:
    config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}  # not known to one that was built in code
    flow = is_flow(config)
    if flow and corrector != NO_CORRECTOR:
        raise ConfigError(
            "A corrector acts on steps of DDIM, and this pipeline is one of flow matching. Apply the correction alone."
        )
    kind = IECFlowMatchScheduler if flow else IECScheduler
    if _latent(pipe) and not flow:
        config.setdefault("clip_sample", False)
    meant = for_ddim(config, {}) if corrector != NO_CORRECTOR and is_euler(config) else {}
    if correction is None and placement is None and corrector == NO_CORRECTOR and isinstance(pipe.scheduler, IECScheduler):
        corrector = pipe.scheduler.corrector
    meant |= {} if flow else {"corrector": corrector}
    if correction is None and placement is None and isinstance(pipe.scheduler, Corrected):
        return kind.from_config(config, **meant)
    where = placement or Placement("none" if correction is None else "all_steps", last_step="skip" if flow else "correct")
    how = asdict(correction or Correction())
    del how["cache_from"]  # a matter of the network
    if how.pop("renorm"):
        raise ConfigError("renorm=True is computed by iec.Sampler only. Leave it out here.")
    if not flow and how.pop("evaluate_at") != "t":
        raise ConfigError("evaluate_at='s' (Heun's rule) is not IEC: use diffusers' HeunDiscreteScheduler, or iec.Sampler.")
    how |= {"preset": "paper", "lambdas": list(how["lambdas"]), "placement": where.kind, "steps": list(where.steps)}
    how |= {"fraction": where.fraction, "count": where.count, "cached_steps": where.cached_steps}
    how["last_step"] = where.last_step
    return kind.from_config(config, **how, **meant)


def _latent(pipe: Any) -> bool:
    return hasattr(pipe, "vae") or hasattr(pipe, "vqvae")


def _cut(pipe: Any, unet: nn.Module, cache: CachingConfig) -> int:
    cache.require_known()
    kind: Kind = "latent" if _latent(pipe) else "pixel"
    return find_cut(unet, kind if cache.cut is None else cast(Kind, cache.cut)).index


def _record(
    pipe: Any,
    unet: nn.Module,
    scheduler: Corrected,
    cut: int | None,
    forecast: ForecastConfig,
    config: PTQConfig,
    calibration: Mapping[str, Any],
) -> tuple[list[CalibrationCall], Forecast]:
    """The calls of a float run of the pipeline, without corrections, and the forecast of its steps."""
    calls: list[CalibrationCall] = []

    def record(call: CalibrationCall) -> None:
        if calls and call.step.index == calls[-1].step.index:  # the other branch of guidance
            call = calls.pop().followed_by(call)
        elif calls:
            require_inputs(calls[-1])
        if call.step.index != len(calls):
            raise ConfigError(
                f"The calibration runs sampling step {call.step.index} after {len(calls)} others: it starts in the middle "
                "(strength < 1, denoising_start), and the steps before would have no scales. Calibrate with strength=1, over all "
                "steps; the result serves every strength."
            )
        calls.append(call)
        if len(call.x) > config.calibration_images:
            require_inputs(call)

    def require_inputs(call: CalibrationCall) -> None:
        if len(call.x) != config.calibration_images:
            raise ConfigError(
                f"The calibration calls the network on {len(call.x)} inputs a step (with guidance two an image), and "
                f"efficiency.calibration_images={config.calibration_images}. Make them agree."
            )

    kind: Any = type(scheduler)
    plain = kind.from_config(scheduler.config, placement="none", fraction=None, count=None, steps=None)
    plain.refresh_of = scheduler.refresh_of
    with exchange(pipe, plain, Forward(unet, plain, cut, forecast, record=record), []):
        pipe(**calibration)
    for call in calls[-1:]:
        require_inputs(call)
    if calls and len(calls) != (steps := len(plain.run.timesteps)):
        raise ConfigError(
            f"The calibration ends after {len(calls)} of {steps} steps (denoising_end), and the others would have no scales. "
            "Calibrate over all steps; the result serves runs that end earlier."
        )
    return calls, forecast.forecast_of(plain.abar())


def _calibrated(
    unet: nn.Module, config: PTQConfig, cut: int | None, forecast: Forecast, calls: list[CalibrationCall]
) -> QuantizedUNet:
    quantized = quantize_unet(unet, config, len(calls))
    share_hooks(unet, quantized.unet, inner=True)  # those of the whole UNet have acted on what was recorded
    network: Network = UNetNetwork(quantized.unet) if cut is None else CachedUNetNetwork(quantized.unet, cut, forecast)
    with reported("calibrating") as report:
        calibrate(quantized, network, calls, report)
    if config.reconstruct != "none":
        with reported(f"reconstruction by {config.reconstruct}") as report:
            reconstruct(quantized, network, unet, UNetNetwork(unet), calls, progress=report)
    return quantized
