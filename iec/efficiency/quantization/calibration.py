"""Finding the activation scales, those of each sampling step on their own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import torch
from torch import Tensor

from iec.efficiency.quantization.model import QuantizedUNet
from iec.errors import ConfigError
from iec.models.inputs import Conditioning
from iec.sampling.network import FeatureCache, Network, Step


@dataclass(frozen=True)
class CalibrationCall:
    """One network call of a float sampling run on n images, what step ``step.index`` is calibrated on.

    x: [n, C, H, W]. cond: [n, ...], see `Network`. cache: what a cached call reuses, [n, ...]; a call in full mode has none.
    """

    x: Tensor
    step: Step
    cond: Tensor | Conditioning | None = None
    cache: FeatureCache | None = None

    def __post_init__(self) -> None:
        if self.cond is not None and len(self.cond) != len(self.x):
            raise ConfigError(f"{len(self.cond)} conditionings for {len(self.x)} calibration images; give each image its own.")
        if (self.cache is None) != (self.step.mode == "full"):
            raise ConfigError(
                f"A calibration call needs a cached feature when its mode is cached, and none when it is full: {self.step}."
            )

    def followed_by(self, other: "CalibrationCall") -> "CalibrationCall":
        """One call on these images and those of ``other``, a full call of the same step: guidance as two calls. Raises
        `ConfigError` as `Conditioning.followed_by` does.
        """
        mine, theirs = self.cond, other.cond
        if isinstance(mine, Conditioning) and isinstance(theirs, Conditioning):
            cond: Tensor | Conditioning | None = mine.followed_by(theirs)
        elif isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            cond = torch.cat([mine, theirs])
        elif mine is None and theirs is None:
            cond = None
        else:
            raise ConfigError("The two calls of guidance have conditionings of two kinds. Give both branches the same arguments.")
        return replace(self, x=torch.cat([self.x, other.x]), cond=cond)

    def batches(self, size: int) -> Iterator["CalibrationCall"]:
        """The call in batches of ``size`` images, the last one smaller if need be."""
        for start in range(0, len(self.x), size):
            yield self.select(slice(start, start + size))

    def select(self, images: slice | Tensor) -> "CalibrationCall":
        """The call on some of its images."""
        return replace(
            self,
            x=self.x[images],
            cond=None if self.cond is None else self.cond[images],
            cache=None if self.cache is None else self.cache.changed(itemgetter(images)),
        )


def calibrate(
    quantized: QuantizedUNet,
    network: Network,
    calls: Sequence[CalibrationCall],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Find step i of the activation quantizers that calls[i] passes through, for i = 0 .. T-1.

    network: evaluates ``quantized.unet``, as it will be sampled. calls: one a step, in order, on ``config.calibration_images``
    images each (twice as many if it is sampled under guidance, for both branches). progress: called with (steps done, T).

    Weights are float meanwhile and activation quantization is on, so that a layer is calibrated on what already quantized layers
    give it (set_act_quantize_params in quant/set_quantize_params.py of zysxmu/IEC). Only the steps calibrated here become
    readable: layers that a cached call leaves out have no scales for it. The result is a function of the arguments, the weights and
    the config. Raises `ConfigError` for calls that do not fit, before any work.
    """
    require_calls(quantized, calls)
    for call in calls:
        calibrate_step(quantized, network, call)
        if progress is not None:
            progress(call.step.index + 1, len(calls))


def require_calls(quantized: QuantizedUNet, calls: Sequence[CalibrationCall]) -> None:
    """Raises `ConfigError` unless there is one call for each step, in order, on the configured number of images."""
    steps, images = quantized.context.num_steps, quantized.config.calibration_images
    if [call.step.index for call in calls] != list(range(steps)):
        raise ConfigError(
            f"The network was quantized for {steps} sampling steps, the calibration set has {len(calls)} calls, at the steps "
            f"{[call.step.index for call in calls]}. Make the calibration set with the timetable that is sampled."
        )
    for call in calls:
        if not len(call.x) or len(call.x) % images:
            raise ConfigError(
                f"Step {call.step.index} has {len(call.x)} calibration images, efficiency.calibration_images={images}. "
                "Make them agree."
            )


@torch.no_grad()
def calibrate_step(quantized: QuantizedUNet, network: Network, call: CalibrationCall) -> None:
    """Find step ``call.step.index`` of the activation quantizers that ``network`` passes through on this call.

    All quantizers lose that step first; those that the call does not reach stay without. The images go through in batches of
    ``config.calibration_batch``.
    """
    for quantizer in quantized.quantizers().values():
        quantizer.clear_step(call.step.index)
    for part in call.batches(quantized.config.calibration_batch):
        with quantized.context.calibrating(part.step.index):
            network(part.x, part.step, part.cond, part.cache)
