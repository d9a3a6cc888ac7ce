"""Activation quantizers with one (delta, z) per sampling step, and the object that tells them which step it is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.quantizer import StraightThrough, levels, round_to_grid, search_scale
from iec.errors import ArtifactError, ConfigError, NonFiniteError

Bound = float | Tensor

MOMENTUM = 0.9
"""Weight of the old scale when a further calibration batch comes in."""


class RowContext:
    """The row that the quantizers of one network read, set for the duration of one call and unset outside.

    The modules of a diffusers UNet take no further arguments, so the step reaches its quantizers through this object, which all
    of them share. It is the only thing they share, and it keeps nothing from call to call.
    """

    def __init__(self, num_steps: int) -> None:
        if num_steps < 1:
            raise ConfigError(f"A quantized network needs at least one sampling step, not {num_steps}.")
        self.num_steps = num_steps
        self.searching = False
        self.rows: Tensor | None = None
        self._row: int | None = None

    def row(self, reader: str) -> int:
        """The current row. Raises `ArtifactError` outside a call."""
        if self._row is None:
            raise ArtifactError(
                f"{reader} was called without a sampling step, so it has no calibration row to read. Call the network "
                "through QuantizedNetwork(...)(x, step), or calibrate it."
            )
        return self._row

    @contextmanager
    def reading(self, row: int) -> Iterator[None]:
        """Quantize with row ``row``: quantized weights, calibrated activations."""
        with self._at(row, searching=False):
            yield

    @contextmanager
    def calibrating(self, row: int) -> Iterator[None]:
        """Find row ``row``: float weights; each quantizer searches on its input, then quantizes with what it found."""
        with self._at(row, searching=True):
            yield

    @contextmanager
    def reading_rows(self, rows: Tensor) -> Iterator[None]:
        """Quantize image b of the batch with row rows[b], int64 [B]; with gradients, for `reconstruct`."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None

    @contextmanager
    def _at(self, row: int, searching: bool) -> Iterator[None]:
        if not 0 <= row < self.num_steps:
            raise ArtifactError(
                f"Sampling step {row} has no calibration row; this network was made for steps 0 .. {self.num_steps - 1}. "
                "Quantize and calibrate it for the timetable that is sampled."
            )
        previous = self._row, self.searching
        self._row, self.searching = row, searching
        try:
            yield
        finally:
            self._row, self.searching = previous


class ActivationQuantizer(nn.Module):
    """Fake quantization with row i of delta and zero_point, where calibrated[i] (all three have T rows).

    One pair for the whole tensor: delta and zero_point are [T]. With ``channels``, one pair a channel, [T, channels]: dimension 1
    of a 4-D input, the last one of any other.

    Rows are made by calibration only: a row that was not calibrated raises `ArtifactError` when it is read. (The original
    fills all rows with the first one found, and layers that cached steps skip keep those copies.)

    log_scale: [T], while `reconstruct` learns the steps: row i is delta_i exp(log_scale_i) in ``reading_rows``, else None.
    """

    delta: Tensor
    zero_point: Tensor
    calibrated: Tensor
    log_scale: Tensor | None

    def __init__(self, name: str, bits: int, config: PTQConfig, context: RowContext, channels: int | None = None) -> None:
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
        if self.context.rows is not None:
            return self._image_by_image(values, self.context.rows).to(x.dtype)
        row = self.context.row(self.name)
        if self.context.searching:
            self._search(row, values)
        bounds = self._bounds[row]
        if bounds is None:
            raise self._uncalibrated(row)
        delta, (low, high) = self.delta[row], bounds
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
            delta, low, high = delta.view(shape), low.view(shape), high.view(shape)
        return round_to_grid(values, delta, low, high, out=out).to(x.dtype)

    def set_rows(self, delta: Tensor, zero_point: Tensor, calibrated: Tensor) -> None:
        """Replace all T rows."""
        self.delta.copy_(delta)
        self.zero_point.copy_(zero_point)
        self.calibrated.copy_(calibrated)
        self.refresh()

    def clear_row(self, row: int) -> None:
        self.calibrated[row] = False
        self._bounds[row] = None

    def refresh(self) -> None:
        """Bring the bounds up to date. Those of a tensor are kept as numbers, so that a forward pass never waits for a device to
        send one, and because clamping with tensors is several times slower.
        """
        rows = zip(self.zero_point if self.channels else self.zero_point.tolist(), self.calibrated.tolist(), strict=True)
        self._bounds = [self._bounds_of(z) if calibrated else None for z, calibrated in rows]

    def _search(self, row: int, x: Tensor) -> None:
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
                f"The input of {self.name} is not finite at sampling step {row} of the calibration. Check the weights and the "
                "calibration images, or use a wider network dtype."
            )
        if self._bounds[row] is not None:  # z becomes fractional and is rounded where it is used
            delta = MOMENTUM * self.delta[row] + (1 - MOMENTUM) * delta
            zero_point = MOMENTUM * self.zero_point[row] + (1 - MOMENTUM) * zero_point
        self.delta[row], self.zero_point[row], self.calibrated[row] = delta, zero_point, True
        self._bounds[row] = self._bounds_of(zero_point if self.channels else float(zero_point))

    def _bounds_of(self, zero_point: Bound) -> tuple[Bound, Bound]:
        if isinstance(zero_point, Tensor):
            z = zero_point.round()
            return -z, levels(self.bits) - 1 - z
        whole = round(zero_point)  # halves to even, like torch.round
        return float(-whole), float(levels(self.bits) - 1 - whole)

    def _image_by_image(self, x: Tensor, rows: Tensor) -> Tensor:
        """xq of x [B, ..], or [B heads, ..] with the heads of an image side by side, with row rows[b] for image b."""
        if not bool(self.calibrated[rows].all()):
            raise self._uncalibrated(int(rows[~self.calibrated[rows]][0]))
        rows = rows.repeat_interleave(len(x) // len(rows))
        one = (len(x),) + (1,) * (x.ndim - 1)
        shape = one if self.channels is None else (len(x), -1, 1, 1) if x.ndim == 4 else (*one[:-1], -1)
        delta, z = self.delta[rows].view(shape), self.zero_point[rows].round().view(shape)
        if self.log_scale is not None:
            delta = delta * self.log_scale[rows].exp().view(one)
        return StraightThrough.apply(x, delta, -z, levels(self.bits) - 1 - z)

    def _uncalibrated(self, row: int) -> ArtifactError:
        return ArtifactError(
            f"{self.name} has no calibration for sampling step {row}: the calibration run did not pass through it at that "
            "step. Calibrate this step on the kind of call that is sampled (full or cached)."
        )
