"""What is quantized, to how many bits, and how the scales and the rounding are found."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from iec.efficiency.quantization.quantizer import SCALE_RULES
from iec.errors import ConfigError, require_fields, require_type

ENDS = frozenset({"conv_in", "conv_out", "pos_embed.proj", "proj_out", "proj_out_2"})
"""The first and the last layer: of a UNet, and of a transformer on patches (PixArt, DiT)."""
OFF = 32
"""The number of bits that means: not quantized."""


@dataclass(frozen=True)
class Reconstruction:
    """How `reconstruct` learns the rounding of a unit (a layer or a block).

    iterations: of Adam, for each unit. The original: 3000, at 5e-3; these take as long a way in a tenth of the time.
    batch_size: images an iteration. The original: 32.
    samples: (image, step) pairs of the calibration set that are used, spread evenly over its calls; all if there are fewer. They
        bound the disk that one unit needs. The original: 1024.
    learning_rate: of the rounding variables, falling to 0 on a cosine. The original: 5e-3 (1e-4 for CIFAR-10).
    step_learning_rate: of the activation steps, relative to their size (that of log delta); 0 leaves them as calibrated.
        The original: 1e-6 to 1e-4.
    regularizer: lambda of the term that drives each h to 0 or 1, see `learn`; 0, as in the original, hardens whatever was found.
        BRECQ's 0.01 is not comparable: its term is a sum over weights, its loss a sum over channels.
    beta_start, beta_end: its exponent, falling linearly after the first ``warmup`` of the iterations, which go without the term.
    quantized_input: probability that an image is fed with what the quantized network gives the unit, not the float one.
    """

    iterations: int = 300
    batch_size: int = 16
    samples: int = 256
    learning_rate: float = 0.1
    step_learning_rate: float = 0.0
    regularizer: float = 1.0
    beta_start: float = 20.0
    beta_end: float = 2.0
    warmup: float = 0.2
    quantized_input: float = 1.0

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.reconstruction.")
        for name, least in (("iterations", 0), ("batch_size", 1), ("samples", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"efficiency.reconstruction.{name}={value} must be a whole number of at least {least}.")
        ranges = {
            "learning_rate": (0, 10),
            "step_learning_rate": (0, 1),
            "regularizer": (0, 1e6),
            "beta_start": (1, 100),
            "beta_end": (1, 100),
            "warmup": (0, 1),
            "quantized_input": (0, 1),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"efficiency.reconstruction.{name}={getattr(self, name)!r} is outside [{low}, {high}].")


GRANULARITIES = ("tensor", "channel")
UNITS = ("none", "layer", "block")


@dataclass(frozen=True)
class PTQConfig:
    """Post-training quantization, rounding to nearest or as learned by `reconstruct`.

    The defaults are W8A8; W4A8 is ``PTQConfig(weight_bits=4)``.

    * weight_bits, activation_bits, softmax_bits: 2 .. 16, or 32 for off. Weights have one scale per output channel, the inputs of
      layers and the operands of attention one per tensor and sampling step (see activation_granularity).
    * end_bits: bits of weight and input of the first and the last layer, `ENDS`, in place of the above; what is off stays off.
    * scale_rule: ``mse``, ``max`` or ``percentile``, of weights and activations, see `search_scale`.
    * weight_symmetric: the grid of a weight is k delta, k = -L/2 .. L/2 - 1. delta is what the rule finds for the weight and its
      negative together. Integer kernels (`iec.efficiency.integer`) then need no sum over a layer's input.
    * percentile: of the rule of that name, above 0.5 and at most 1 (the extremes): the share of values below the upper bound. A
      channel of n weights loses int((1 - percentile) (n - 1)) of them at either end, which is none for a small n.
    * activation_granularity: ``tensor``, or ``channel`` for one scale per channel of a layer's input. Operands of attention have
      one per tensor in both: theirs is a product over channels, and one scale serves all heads. The mse search scores all 40
      candidates of each channel in full, which takes several times longer.
    * search_samples: elements of an activation that the mse rule scores its candidates on, evenly spaced; None means all of them,
      as the original does. The search is nearly all of the time of a calibration; 65536 makes it several times shorter, and may
      choose a neighbouring candidate (2 % of the range further) where two score almost the same.
    * split_skips: give the two halves of a skip concatenation their own scales (weights and activations).
    * calibration_images: images in each step on which the activation scales are calibrated.
    * calibration_batch: images that share one forward pass and one search; over the batches of a step the scales are averaged as
      p <- 0.9 p + 0.1 p_new, from the first. It changes the result, so it is part of the configuration. With
      calibration_batch >= calibration_images there is one batch and nothing is averaged.
    * reconstruct: ``none`` rounds weights to nearest; ``layer`` and ``block`` learn the rounding, after calibration, from the
      output of single layers or of residual, attention and transformer blocks, as ``reconstruction`` says.
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
    weight_symmetric: bool = False
    percentile: float = 0.9999
    activation_granularity: str = "tensor"
    reconstruct: str = "none"
    reconstruction: Reconstruction = Reconstruction()

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")  # those of a subclass too
        require_type("efficiency.reconstruction", self.reconstruction, Reconstruction, "Reconstruction(iterations=300)")
        for name in ("weight_bits", "activation_bits", "softmax_bits", "end_bits"):
            bits = getattr(self, name)
            if not (2 <= bits <= 16 or bits == OFF):
                raise ConfigError(f"efficiency.{name}={bits} cannot be run; choose 2 .. 16, or {OFF} for no quantization.")
        choices = {"scale_rule": SCALE_RULES, "activation_granularity": GRANULARITIES, "reconstruct": UNITS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"Unknown efficiency.{name} {getattr(self, name)!r}; choose {', '.join(known)}.")
        if not 0.5 < self.percentile <= 1:
            raise ConfigError(f"efficiency.percentile={self.percentile!r} must be above 0.5 and at most 1, e.g. 0.9999.")
        if self.reconstruct != "none" and self.weight_bits == OFF:
            raise ConfigError(
                f"efficiency.reconstruct={self.reconstruct} learns the rounding of weights, and weight_bits={OFF} rounds none. "
                "Use efficiency.reconstruct=none, or quantize the weights."
            )
        for name in ("calibration_images", "calibration_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"efficiency.{name}={getattr(self, name)} must be a whole number of at least 1.")
        if self.search_samples is not None and self.search_samples < 1:
            raise ConfigError(f"efficiency.search_samples={self.search_samples} must be at least 1, or null for all.")

    def fingerprint(self) -> dict[str, Any]:
        """JSON values: the settings that a result depends on, without those of rules that are not in use."""
        fingerprint = {f.name: getattr(self, f.name) for f in fields(PTQConfig)}  # a subclass may have more of them
        del fingerprint["reconstruction"]
        if self.reconstruct != "none":
            fingerprint["reconstruction"] = asdict(self.reconstruction)
        if self.scale_rule != "percentile":
            del fingerprint["percentile"]
        if not self.weight_symmetric:
            del fingerprint["weight_symmetric"]
        return fingerprint

    def bits_of(self, layer: str) -> tuple[int, int]:
        """(weight bits, activation bits) of the layer of that name, e.g. ``down_blocks.0.resnets.0.conv1``."""
        bits = (self.weight_bits, self.activation_bits)
        if layer in ENDS:
            return self._end(bits[0]), self._end(bits[1])
        return bits

    def _end(self, bits: int) -> int:
        return OFF if bits == OFF else self.end_bits
