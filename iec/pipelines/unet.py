"""The UNet of a pipeline, as a network that knows which step and correction its calls belong to."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.quantization import CalibrationCall, QuantizedUNet
from iec.errors import ConfigError
from iec.pipelines.scheduler import IECScheduler, Run
from iec.sampling.network import FeatureCache, Step


class Forward:
    """The ``forward`` of a pipeline's UNet: asks the scheduler which step and correction a call belongs to.

    The feature of the last refresh lives from there to the end of the run, and is forgotten when the next one is laid out.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: IECScheduler,
        cut: int | None,
        cache_from: str = "last",
        quantized: QuantizedUNet | None = None,
        timesteps: tuple[int, ...] = (),
        record: Callable[[CalibrationCall], None] | None = None,
    ) -> None:
        self.unet, self.scheduler, self.cut, self.cache_from = unet, scheduler, cut, cache_from
        self.quantized, self.timesteps, self.record = quantized, timesteps, record
        self.signature = inspect.signature(type(unet).forward)
        self.run: Run | None = None
        self.position: int | None = None
        self.cache: FeatureCache | None = None
        self.network: CachedUNetNetwork | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the UNet's own forward."""
        bound = self.signature.bind(self.unet, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        step = self._next(given["timestep"])
        conditional = "encoder_hidden_states" in given
        x, cond = given["sample"], given["encoder_hidden_states" if conditional else "class_labels"]
        if self.cut is not None or self.record is not None:
            _require_plain_call(given)
        if self.record is not None:
            self.record(CalibrationCall(x, step, cond, self.cache if step.mode == "cached" else None))
        with nullcontext() if self.quantized is None else self.quantized.context.reading(step.index):
            if self.network is None:
                return type(self.unet).forward(self.unet, *args, **kwargs)
            eps = self._cached(self.network, x, step, cond)
        if not given["return_dict"]:
            return (eps,)
        return UNet2DConditionOutput(sample=eps) if conditional else UNet2DOutput(sample=eps)

    def _next(self, timestep: int | Tensor) -> Step:
        """The call that this is; a run that was laid out since the last call begins with no feature."""
        step, run = self.scheduler.call(timestep), self.scheduler.run
        if run is not self.run:
            if self.timesteps and tuple(t for t, _ in run.pairs) != self.timesteps:
                raise ConfigError(
                    f"The network was calibrated for the {len(self.timesteps)} timesteps {self.timesteps[0]} .. "
                    f"{self.timesteps[-1]}, and this run has others. Use those, or apply again with a calibration for these."
                )
            self.run, self.position, self.cache = run, None, None
            # made here, since the pipeline may have changed its device or dtype
            self.network = None if self.cut is None else CachedUNetNetwork(self.unet, self.cut)
        if self.position == self.scheduler.position and self.cut is not None:
            raise ConfigError(
                "The UNet was called twice within one call of the scheduler (guidance as two calls, or another scheduler): the "
                "feature of one would be reused in the other. Use a pipeline that doubles the batch, or leave the cache out."
            )
        self.position = self.scheduler.position
        return step

    def _cached(self, network: CachedUNetNetwork, x: Tensor, step: Step, cond: Tensor | None) -> Tensor:
        prediction = network(x, step, cond, self.cache)
        if prediction.feature is not None and (step.correction == 0 or self.cache_from == "last"):
            self.cache = FeatureCache(prediction.feature, step)
        if self.run is not None and self.position == len(self.run.calls) - 1:  # nobody reuses it
            self.cache = None
        return prediction.eps


def _require_plain_call(given: Mapping[str, Any]) -> None:
    """Only what a `Network` takes: the state, the timestep, one conditioning."""
    known = {"self", "sample", "timestep", "return_dict", "encoder_hidden_states"}
    if "encoder_hidden_states" not in given:
        known.add("class_labels")
    extra = [name for name, value in given.items() if name not in known and value is not None]
    if extra:
        raise ConfigError(
            f"The pipeline gives its UNet {', '.join(extra)}, which caching and calibration cannot pass on. Leave that out of "
            "the pipeline, or apply the correction alone."
        )


def plain_unet(pipe: Any) -> nn.Module:
    """The pipeline's UNet, if nobody else has a hand in its forward."""
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        raise ConfigError(f"{type(pipe).__name__} has no UNet; caching and quantization need one. Apply the correction alone.")
    for name, module in unet.named_modules():
        own = vars(module).get("forward")
        if own is None or getattr(own, "__func__", None) is type(module).forward:
            continue
        if getattr(own, "__module__", "").partition(".")[0] == "DeepCache":
            raise ConfigError(
                "DeepCacheSDHelper is enabled on this pipeline. It counts its steps by the list of timesteps, which corrections "
                "repeat. Call its disable() and give apply a cache instead."
            )
        raise ConfigError(
            f"The forward of {name or 'the UNet'} has been replaced already (by offloading, or by iec.apply on a pipeline of the "
            "same parts). Take that off, and put it back after this."
        )
    return unet


def restorer(unet: nn.Module) -> Callable[[], None]:
    """Gives the UNet back the flags that caching and calibration switch off."""
    training, flags = [m for m in unet.modules() if m.training], [p for p in unet.parameters() if p.requires_grad]

    def restore() -> None:
        for module in training:
            module.training = True
        for parameter in flags:
            parameter.requires_grad_(True)

    return restore
