"""The network of a pipeline, as one that knows which step and correction its calls belong to."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.forecast_config import ForecastConfig
from iec.efficiency.caching.network import ARGUMENTS, TEXT
from iec.efficiency.quantization import CalibrationCall, QuantizedUNet
from iec.errors import ConfigError
from iec.models.inputs import Conditioning
from iec.pipelines.bound import Bound
from iec.pipelines.copies import QuantizedCopy
from iec.pipelines.corrected import Corrected
from iec.pipelines.run import Run
from iec.pipelines.wrappers import TRANSFORMERS, UNETS, require_called, require_uncompiled
from iec.sampling.correction import kept
from iec.sampling.network import FeatureCache, Step, renewed

SHARED: dict[type[Any], frozenset[str]] = {
    SD3Transformer2DModel: frozenset({"joint_attention_kwargs"}),
    FluxTransformer2DModel: frozenset({"img_ids", "txt_ids", "joint_attention_kwargs", "controlnet_blocks_repeat"}),
    SanaTransformer2DModel: frozenset({"attention_kwargs"}),
}
"""What all images are told together. These networks get the timestep from the pipeline in a form of their own."""


class Forward(Bound):
    """The ``forward`` of a pipeline's UNet: asks the scheduler which step and correction a call belongs to.

    The features of the last refreshes live from there to the end of the run, and are forgotten when the next one is laid out. Where
    the batch changes in between (guidance switched off), they begin anew. Nothing is computed if somebody else's hook or
    switch on the UNet would be passed over: `require_called`, `QuantizedCopy.require_unchanged`.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Corrected,
        cut: int | None,
        forecast: ForecastConfig,
        cache_from: str = "last",
        quantized: QuantizedUNet | None = None,
        copy: QuantizedCopy | None = None,
        timesteps: tuple[float, ...] = (),
        record: Callable[[CalibrationCall], None] | None = None,
    ) -> None:
        kind = next(kind for kind in (*UNETS, *TRANSFORMERS) if isinstance(unet, kind))
        self.unet, self.scheduler, self.cut, self.forecast, self.cache_from = unet, scheduler, cut, forecast, cache_from
        self.quantized, self.copy, self.timesteps, self.record = quantized, copy, timesteps, record
        self.signature = inspect.signature(kind.forward)  # of diffusers, also where a subclass hides it
        self.conditional = kind is UNet2DConditionModel
        self.state = list(self.signature.parameters)[1]  # the argument that is x
        # what may be told beside the state, and which of it as a bare tensor; a transformer may be told anything by image
        self.bare = TEXT if self.conditional else "class_labels" if kind is UNet2DModel else None
        self.passed = ARGUMENTS if self.conditional else frozenset({"class_labels"}) if kind is UNet2DModel else None
        self.shared = SHARED.get(kind)
        self.per_unit = 1000.0 if kind is FluxTransformer2DModel else 1 / getattr(unet.config, "timestep_scale", 1.0)
        self.run: Run | None = None
        self.position: int | None = None
        self.cache: FeatureCache | None = None
        self.network: CachedUNetNetwork | None = None

    @torch.compiler.disable  # for whoever compiles the UNet after this: refused below, and not by a failing trace
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the UNet's own forward."""
        if self.record is None:  # else the UNet itself is run, once, right after it was looked at
            require_uncompiled(self.unet, quantize=self.quantized is not None)
            require_called(self.unet, quantize=self.quantized is not None, cache=self.cut is not None)
        if self.copy is not None:
            self.copy.require_unchanged()
        bound = self.signature.bind(self.unet, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        step = self._next(given["timestep"])
        x = given[self.state]
        cond = self._conditioning(given) if self.cut is not None or self.record is not None else None
        if self.record is not None:
            self.record(CalibrationCall(x, step, cond, self.cache if step.mode == "cached" else None))
        with nullcontext() if self.quantized is None else self.quantized.context.reading(step.index):
            if self.network is None:
                return type(self.unet).forward(self.unet, *args, **kwargs)
            eps = self._cached(self.network, x, step, cond)
        if not given["return_dict"]:
            return (eps,)
        return UNet2DConditionOutput(sample=eps) if self.conditional else UNet2DOutput(sample=eps)

    def _next(self, timestep: float | Tensor) -> Step:
        """The call that this is; a run that was laid out since the last call begins with no feature."""
        if self.shared is not None:
            timestep = self.scheduler.label_near(float(torch.as_tensor(timestep).flatten()[0]) * self.per_unit)
        try:
            step, run = self.scheduler.call(timestep), self.scheduler.run
        except ConfigError as error:
            raise ConfigError(
                f"This network is under iec.apply, whose scheduler did not lay out this call ({str(error).split('. ')[0]}). If "
                "another pipeline with the same network is run, call iec.remove(pipe) before, and iec.apply on that one; without a "
                "correction it may also get that scheduler (other.scheduler = pipe.scheduler). Else call "
                "set_timesteps before every run, and the network once for every timestep."
            ) from error
        if run is not self.run:
            if self.timesteps and run.timesteps != self.timesteps:
                raise ConfigError(
                    f"The network was calibrated for the {len(self.timesteps)} timesteps {self.timesteps[0]} .. "
                    f"{self.timesteps[-1]}, and this run has others. Use those, or apply again with a calibration for these."
                )
            self.run, self.position, self.cache = run, None, None
            # made here, since the pipeline may have changed its device or dtype
            self.network = None if self.cut is None else self._network(self.cut)
        if self.position == self.scheduler.position and self.cut is not None:
            raise ConfigError(
                "The UNet was called twice within one call of the scheduler (guidance as two calls, or another scheduler): the "
                "feature of one would be reused in the other. Use a pipeline that doubles the batch, or leave the cache out."
            )
        self.position = self.scheduler.position
        return step

    def _cached(self, network: CachedUNetNetwork, x: Tensor, step: Step, cond: Tensor | Conditioning | None) -> Tensor:
        if self.cache is not None and len(self.cache.feature) != len(x):
            if self.quantized is not None and step.mode == "cached":
                raise ConfigError(
                    f"The UNet is called on {len(x)} images, and the cached feature is of {len(self.cache.feature)} (guidance "
                    "switched off in mid-run?). The deep layers are not calibrated for this step: switch it at a refresh step, or "
                    "leave quantization out, which refreshes here."
                )
            step, self.cache = replace(step, mode="full"), None
        prediction = network(x, step, cond, self.cache)
        if step.correction == 0 or self.cache_from == "last":
            self.cache = self._kept(renewed(self.cache, prediction, step))
        if self.run is not None and self.position == len(self.run.calls) - 1:  # nobody reuses it
            self.cache = None
        return prediction.eps

    def _kept(self, cache: FeatureCache | None) -> FeatureCache | None:
        """``cache``; for images that converged earlier in this step with what was stored before they did, as in `iec.Sampler`."""
        frozen = self.scheduler.frozen
        if frozen is None or cache is None or not bool(frozen.any()):
            return cache
        return kept(frozen.repeat(len(cache.feature) // len(frozen)), self.cache, cache)  # under guidance: both branches

    def _conditioning(self, given: Mapping[str, Any]) -> Tensor | Conditioning | None:
        """What the network is ``given`` beside the state and the timestep: one tensor if that is the argument ``bare`` alone.

        Raises `ConfigError` for arguments that are not passed on.
        """
        shared = self.shared or frozenset()
        own = {"self", self.state, "return_dict", *shared} | ({"timestep"} if self.shared is None else set())
        told = {name: value for name, value in given.items() if name not in own and value is not None}
        extra = [] if self.passed is None else sorted(told.keys() - self.passed)
        if extra:
            raise ConfigError(
                f"The pipeline gives its UNet {', '.join(extra)}, which caching and calibration cannot pass on. Leave that out of "
                "the pipeline, or apply the correction alone."
            )
        if not told or list(told) == [self.bare]:
            return next(iter(told.values()), None)
        return Conditioning(told, {name: given[name] for name in shared})

    def _network(self, cut: int) -> CachedUNetNetwork:
        return CachedUNetNetwork(self.unet, cut, self.forecast.forecast_of(self.scheduler.abar()))


def restorer(unet: nn.Module) -> Callable[[], None]:
    """Gives the UNet back the flags that caching and calibration switch off."""
    training, flags = [m for m in unet.modules() if m.training], [p for p in unet.parameters() if p.requires_grad]

    def restore() -> None:
        for module in training:
            module.training = True
        for parameter in flags:
            parameter.requires_grad_(True)

    return restore
