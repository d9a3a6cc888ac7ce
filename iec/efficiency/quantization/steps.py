"""Activation quantizers with one (delta, z) per sampling step, and the object that tells them which step it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.quantizer import StraightThrough, levels, round_to_grid, search_scale
from iec.errors import ArtifactError, ConfigError, NonFiniteError

Bound = float | Tensor

MOMENTUM = 0.9
"""Weight of the old scale when a further calibration batch comes in."""


class StepContext:
    """The step that the quantizers of one network read, set for the duration of one call and unset outside.

    The modules of a diffusers UNet take no further arguments, so the step reaches its quantizers through this object, which all
    of them share. It is the only thing they share, and it keeps nothing from call to call.
    """

    def __init__(self, num_steps: int) -> None:
        if num_steps < 1:
            raise ConfigError(f"A quantized network needs at least one sampling step, not {num_steps}.")
        self.num_steps = num_steps
        self.searching = False
        self.index: Tensor | None = None
        self.steps: Tensor | None = None
        self._step: int | None = None

    def step(self, reader: str) -> int:
        """The current step. Raises `ArtifactError` outside a call."""
        if self._step is None:
            raise ArtifactError(
                f"{reader} was called without a sampling step, so it has no scales to read. Call the network "
                "through QuantizedNetwork(...)(x, step), or calibrate it."
            )
        return self._step

    def entry(self, table: Tensor, reader: str) -> Tensor:
        """That of the current step in a table [T, ..]."""
        return table[self.step(reader)] if self.index is None else table.index_select(0, self.index)[0]

    @contextmanager
    def reading(self, step: int, device: torch.device | None = None) -> Iterator[None]:
        """Quantize with the scales of ``step``: quantized weights, calibrated activations.

        device: quantizers read their tables there by ``index``, int64 [1]. A compiled graph takes that as an input, where the
        number ``step`` would be a constant of it. It cannot refuse a step: who calls it has to (`ActivationQuantizer.require`).
        """
        index = None if device is None else torch.full((1,), step, device=device)
        with self._at(step, searching=False, index=index):
            yield

    @contextmanager
    def calibrating(self, step: int) -> Iterator[None]:
        """Find the scales of ``step``: float weights; each quantizer searches on its input, then quantizes with what it found."""
        with self._at(step, searching=True):
            yield

    @contextmanager
    def reading_steps(self, steps: Tensor) -> Iterator[None]:
        """Quantize image b of the batch with the scales of step steps[b], int64 [B]; with gradients, for `reconstruct`."""
        self.steps = steps
        try:
            yield
        finally:
            self.steps = None

    @contextmanager
    def _at(self, step: int, searching: bool, index: Tensor | None = None) -> Iterator[None]:
        if not 0 <= step < self.num_steps:
            raise ArtifactError(
                f"Sampling step {step} has no scales; this network was made for steps 0 .. {self.num_steps - 1}. "
                "Quantize and calibrate it for the timetable that is sampled."
            )
        previous = self._step, self.searching, self.index
        self._step, self.searching, self.index = step, searching, index
        try:
            yield
        finally:
            self._step, self.searching, self.index = previous


class Float32Scales(nn.Module):
    """A module whose buffers named in ``SCALES`` stay float32 whatever dtype the network is moved to (``.to``, ``.half``)."""

    SCALES: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scales = {name: self._buffers[name] for name in self.SCALES}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            moved = self._buffers[name]
            if scale is not None and moved is not None and moved.dtype != scale.dtype:
                self._buffers[name] = scale.to(moved.device)
        return self


class ActivationQuantizer(Float32Scales):
    """Fake quantization with delta[i] and zero_point[i] at step i, where calibrated[i]; all three have the length T.

    One pair for the whole tensor: delta and zero_point are [T]. With ``channels``, one pair a channel, [T, channels]: dimension 1
    of a 4-D input, the last one of any other.

    Scales are made by calibration only: a step that was not calibrated raises `ArtifactError` when it is read. (The original
    fills all steps with the first scale found, and layers that cached steps skip keep those copies.)

    log_scale: [T], while `reconstruct` learns delta: at step i it is delta_i exp(log_scale_i) in ``reading_steps``, else None.
    """

    SCALES = ("delta", "zero_point")

    delta: Tensor
    zero_point: Tensor
    calibrated: Tensor
    log_scale: Tensor | None

    def __init__(self, name: str, bits: int, config: PTQConfig, context: StepContext, channels: int | None = None) -> None:
        super().__init__()
        self.name, self.bits, self.config, self.context, self.channels = name, bits, config, context, channels
        shape = (context.num_steps,) if channels is None else (context.num_steps, channels)
        self.register_buffer("delta", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape))
        self.register_buffer("calibrated", torch.zeros(context.num_steps, dtype=torch.bool))
        self.log_scale = None
        self._bounds: list[tuple[Bound, Bound] | None] = [None] * context.num_steps
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """xq of x (any shape), in x's dtype; written to ``out``, float32, if given."""
        values = x.to(torch.float32)
        if self.context.steps is not None:
            return self._image_by_image(values, self.context.steps).to(x.dtype)
        if self.context.searching:
            self._search(self.context.step(self.name), values)
        delta, low, high = self.grid()
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
            delta, low, high = delta.view(shape), low.view(shape), high.view(shape)
        return round_to_grid(values, delta, low, high, out=out).to(x.dtype)

    def grid(self) -> tuple[Tensor, Bound, Bound]:
        """delta, low and high of the current step: xq = k delta, k = low .. high. Raises `ArtifactError` if it has none."""
        delta = self.context.entry(self.delta, self.name)
        if self.context.index is None:
            return delta, *self.require(self.context.step(self.name))
        return delta, *self._bounds_of(self.context.entry(self.zero_point, self.name))

    def require(self, step: int) -> tuple[Bound, Bound]:
        """low and high of ``step``. Raises `ArtifactError` if it has none."""
        bounds = self._bounds[step]
        if bounds is None:
            raise self._uncalibrated(step)
        return bounds

    def set_steps(self, delta: Tensor, zero_point: Tensor, calibrated: Tensor) -> None:
        """Replace the scales of all T steps."""
        self.delta.copy_(delta)
        self.zero_point.copy_(zero_point)
        self.calibrated.copy_(calibrated)
        self.refresh()

    def clear_step(self, step: int) -> None:
        self.calibrated[step] = False
        self._bounds[step] = None

    def refresh(self) -> None:
        """Bring the bounds up to date. Those of a tensor are kept as numbers, so that a forward pass never waits for a device to
        send one, and because clamping with tensors is several times slower.
        """
        steps = zip(self.zero_point if self.channels else self.zero_point.tolist(), self.calibrated.tolist(), strict=True)
        self._bounds = [self._bounds_of(z) if calibrated else None for z, calibrated in steps]

    def _search(self, step: int, x: Tensor) -> None:
        if self.channels is not None:
            x = x.movedim(1 if x.ndim == 4 else -1, 0)
        delta, zero_point = search_scale(
            x,
            self.bits,
            self.config.scale_rule,
            per_channel=self.channels is not None,
            samples=self.config.search_samples,
            percentile=self.config.percentile,
        )
        if not bool((torch.isfinite(delta) & torch.isfinite(zero_point)).all()):
            raise NonFiniteError(
                f"The input of {self.name} is not finite at sampling step {step} of the calibration. Check the weights and the "
                "calibration images, or use a wider network dtype."
            )
        if self._bounds[step] is not None:  # z becomes fractional and is rounded where it is used
            delta = MOMENTUM * self.delta[step] + (1 - MOMENTUM) * delta
            zero_point = MOMENTUM * self.zero_point[step] + (1 - MOMENTUM) * zero_point
        self.delta[step], self.zero_point[step], self.calibrated[step] = delta, zero_point, True
        self._bounds[step] = self._bounds_of(zero_point if self.channels else float(zero_point))

    def _bounds_of(self, zero_point: Bound) -> tuple[Bound, Bound]:
        if isinstance(zero_point, Tensor):
            z = zero_point.round()
            return -z, levels(self.bits) - 1 - z
        whole = round(zero_point)  # halves to even, like torch.round
        return float(-whole), float(levels(self.bits) - 1 - whole)

    def _image_by_image(self, x: Tensor, steps: Tensor) -> Tensor:
        """xq of x [B, ..], or [B heads, ..] with the heads of an image side by side; image b with the scales of steps[b]."""
        if not bool(self.calibrated[steps].all()):
            raise self._uncalibrated(int(steps[~self.calibrated[steps]][0]))
        steps = steps.repeat_interleave(len(x) // len(steps))
        one = (len(x),) + (1,) * (x.ndim - 1)
        shape = one if self.channels is None else (len(x), -1, 1, 1) if x.ndim == 4 else (*one[:-1], -1)
        delta, z = self.delta[steps].view(shape), self.zero_point[steps].round().view(shape)
        if self.log_scale is not None:
            delta = delta * self.log_scale[steps].exp().view(one)
        return StraightThrough.apply(x, delta, -z, levels(self.bits) - 1 - z)

    def _uncalibrated(self, step: int) -> ArtifactError:
        return ArtifactError(
            f"{self.name} has no calibration for sampling step {step}: the calibration run did not pass through it at that "
            "step. Calibrate this step on the kind of call that is sampled (full or cached)."
        )
