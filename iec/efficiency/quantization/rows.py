"""Activation quantizers with one (delta, z) per sampling step, and the object that tells them which step it is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.quantizer import levels, round_to_grid, search_scale
from iec.errors import ArtifactError, ConfigError, NonFiniteError

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
    """Fake quantization of a whole tensor with row i of delta [T] and zero_point [T], where calibrated[i].

    Rows are made by calibration only: a row that was not calibrated raises `ArtifactError` when it is read. (The original
    fills all rows with the first one found, and layers that cached steps skip keep those copies.)
    """

    delta: Tensor
    zero_point: Tensor
    calibrated: Tensor

    def __init__(self, name: str, bits: int, config: PTQConfig, context: RowContext) -> None:
        super().__init__()
        self.name, self.bits, self.config, self.context = name, bits, config, context
        self.register_buffer("delta", torch.ones(context.num_steps))
        self.register_buffer("zero_point", torch.zeros(context.num_steps))
        self.register_buffer("calibrated", torch.zeros(context.num_steps, dtype=torch.bool))
        self._bounds: list[tuple[float, float] | None] = [None] * context.num_steps
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """xq of x (any shape), in x's dtype; written to ``out``, float32, if given."""
        row = self.context.row(self.name)
        values = x.to(torch.float32)
        if self.context.searching:
            self._search(row, values)
        bounds = self._bounds[row]
        if bounds is None:
            raise ArtifactError(
                f"{self.name} has no calibration for sampling step {row}: the calibration run did not pass through it at that "
                "step. Calibrate this step on the kind of call that is sampled (full or cached)."
            )
        return round_to_grid(values, self.delta[row], *bounds, out=out).to(x.dtype)

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
        """Bring the bounds up to date. They are kept as numbers, so that a forward pass never waits for a device to send one."""
        rows = zip(self.zero_point.tolist(), self.calibrated.tolist(), strict=True)
        self._bounds = [self._bounds_of(z) if calibrated else None for z, calibrated in rows]

    def _search(self, row: int, x: Tensor) -> None:
        delta, zero_point = search_scale(x, self.bits, self.config.scale_rule, samples=self.config.search_samples)
        if not bool(torch.isfinite(delta) & torch.isfinite(zero_point)):
            raise NonFiniteError(
                f"The input of {self.name} is not finite at sampling step {row} of the calibration. Check the weights and the "
                "calibration images, or use a wider network dtype."
            )
        if self._bounds[row] is not None:  # z becomes fractional and is rounded where it is used
            delta = MOMENTUM * self.delta[row] + (1 - MOMENTUM) * delta
            zero_point = MOMENTUM * self.zero_point[row] + (1 - MOMENTUM) * zero_point
        self.delta[row], self.zero_point[row], self.calibrated[row] = delta, zero_point, True
        self._bounds[row] = self._bounds_of(float(zero_point))

    def _bounds_of(self, zero_point: float) -> tuple[float, float]:
        z = round(zero_point)  # halves to even, like torch.round
        return float(-z), float(levels(self.bits) - 1 - z)
