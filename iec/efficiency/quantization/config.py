"""What is quantized, to how many bits, and how the scales are found."""

from dataclasses import dataclass

from iec.efficiency.quantization.quantizer import SCALE_RULES
from iec.errors import ConfigError

OFF = 32
"""The number of bits that means: not quantized."""


@dataclass(frozen=True)
class PTQConfig:
    """Post-training quantization by rounding to nearest. The defaults are W8A8; W4A8 is ``PTQConfig(weight_bits=4)``.

    weight_bits, activation_bits, softmax_bits: 2 .. 16, or 32 for off. Weights have one scale per output channel, the inputs of
        layers and the operands of attention one per tensor and sampling step.
    end_bits: bits of weight and input of ``conv_in`` and ``conv_out``, in place of the above; what is off stays off.
    scale_rule: ``mse`` or ``max``, see `search_scale`.
    search_samples: elements of an activation that the mse rule scores its candidates on, evenly spaced; None means all of them,
        as the original does. The search is nearly all of the time of a calibration; 65536 makes it several times shorter, and
        may choose a neighbouring candidate (2 % of the range further) where two score almost the same.
    split_skips: give the two halves of a skip concatenation their own scales (weights and activations).
    calibration_images: images a step that the activation scales are found on.
    calibration_batch: images that share one forward pass and one search; over the batches of a step the scales are averaged as
        p <- 0.9 p + 0.1 p_new, from the first. It is part of the result, not a matter of speed: hence a setting here and not
        an argument there. With calibration_batch >= calibration_images there is one batch and nothing is averaged.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    softmax_bits: int = 8
    end_bits: int = 8
    scale_rule: str = "mse"
    search_samples: int | None = None
    split_skips: bool = True
    calibration_images: int = 32
    calibration_batch: int = 32

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "softmax_bits", "end_bits"):
            bits = getattr(self, name)
            if type(bits) is not int or not (2 <= bits <= 16 or bits == OFF):
                raise ConfigError(f"efficiency.{name}={bits!r} cannot be run; choose 2 .. 16, or {OFF} for no quantization.")
        if self.scale_rule not in SCALE_RULES:
            raise ConfigError(f"Unknown efficiency.scale_rule {self.scale_rule!r}; choose {' or '.join(SCALE_RULES)}.")
        for name in ("calibration_images", "calibration_batch"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ConfigError(f"efficiency.{name}={getattr(self, name)!r} must be a whole number of at least 1.")
        if self.search_samples is not None and (type(self.search_samples) is not int or self.search_samples < 1):
            raise ConfigError(
                f"efficiency.search_samples={self.search_samples!r} must be a whole number of at least 1, or null for all."
            )

    def bits_of(self, layer: str) -> tuple[int, int]:
        """(weight bits, activation bits) of the layer of that name, e.g. ``down_blocks.0.resnets.0.conv1``."""
        bits = (self.weight_bits, self.activation_bits)
        if layer in ("conv_in", "conv_out"):
            return self._end(bits[0]), self._end(bits[1])
        return bits

    def _end(self, bits: int) -> int:
        return OFF if bits == OFF else self.end_bits
