"""Finding the activation scales, one row per sampling step."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from iec.efficiency.quantization.model import QuantizedUNet
from iec.errors import ConfigError
from iec.network import FeatureCache, Network, Step, UNetNetwork


def calibrate(
    quantized: QuantizedUNet,
    inputs: Tensor | Sequence[Tensor],
    timesteps: Sequence[int],
    cond: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Find row i of every activation quantizer, for i = 0 .. T-1, with full calls on inputs[i].

    inputs: [T, n, C, H, W], what a float sampling run feeds the network at step i; n is ``config.calibration_images``.
    timesteps: the T training timesteps tau_i. cond: [n, ...], one row an image, the same at all steps.
    progress: called with (rows done, T).

    Weights are float meanwhile and activation quantization is on, so that a layer is calibrated on what already quantized layers
    give it (set_act_quantize_params in quant/set_quantize_params.py of zysxmu/IEC). Only the rows calibrated here become
    readable. The result is a function of the arguments, the weights and the config.
    """
    rows, images = quantized.context.num_steps, quantized.config.calibration_images
    if len(inputs) != rows or len(timesteps) != rows:
        raise ConfigError(
            f"The network was quantized for {rows} sampling steps, the calibration set has inputs for {len(inputs)} and "
            f"{len(timesteps)} timesteps. Make the calibration set with the timetable that is sampled."
        )
    network = UNetNetwork(quantized.unet)
    for i, timestep in enumerate(timesteps):
        if len(inputs[i]) != images:
            raise ConfigError(
                f"Step {i} has {len(inputs[i])} calibration images, efficiency.calibration_images={images}. Make them agree."
            )
        calibrate_row(quantized, network, inputs[i], Step(i, timestep), cond)
        if progress is not None:
            progress(i + 1, rows)


@torch.no_grad()
def calibrate_row(
    quantized: QuantizedUNet,
    network: Network,
    x: Tensor,
    step: Step,
    cond: Tensor | None = None,
    cache: FeatureCache | None = None,
) -> None:
    """Find row ``step.index`` of the activation quantizers that ``network(x, step, cond, cache)`` passes through.

    network: evaluates ``quantized.unet``. All quantizers lose that row first; those that the call does not reach stay without.
    x [n, C, H, W] goes through in batches of ``config.calibration_batch``.
    """
    if cond is not None and len(cond) != len(x):
        raise ConfigError(f"{len(cond)} rows of conditioning for {len(x)} calibration images; needs one row an image.")
    for quantizer in quantized.quantizers().values():
        quantizer.clear_row(step.index)
    size = quantized.config.calibration_batch
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        with quantized.context.calibrating(step.index):
            network(
                x[part],
                step,
                None if cond is None else cond[part],
                None if cache is None else replace(cache, feature=cache.feature[part]),
            )
