"""Learning the rounding of one unit: data in files, Adam, hardened at the end."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.quantization.calibration import CalibrationCall
from iec.efficiency.quantization.capture import Arguments, Column, catch, split_arguments
from iec.efficiency.quantization.config import OFF, Reconstruction
from iec.efficiency.quantization.layers import QuantLayer
from iec.efficiency.quantization.model import QuantizedNetwork, QuantizedUNet
from iec.efficiency.quantization.rounding import LearnedRounding, annealed
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.errors import NonFiniteError
from iec.sampling.network import Network


@dataclass(frozen=True)
class Samples:
    """What a unit is learned from, n images: the quantized network's arguments, the float ones (or None), float targets [n, ..]
    and steps [n].
    """

    quantized: Arguments
    float: Arguments | None
    targets: Tensor
    steps: Tensor


def collect(
    name: str,
    quantized: QuantizedUNet,
    network: Network,
    unet: nn.Module,
    reference: Network,
    calls: Sequence[CalibrationCall],
    folder: Path,
) -> Samples | None:
    """The samples of the unit ``name`` from all calls that reach it; None if none does. Files go to ``folder``."""
    inner, outer = quantized.unet.get_submodule(name), unet.get_submodule(name)
    own, theirs, targets = Arguments(folder, "quantized"), Arguments(folder, "float"), Column(folder / "target")
    with_float = quantized.config.reconstruction.quantized_input < 1
    sampled = QuantizedNetwork(quantized, network)
    steps: list[int] = []
    for call in calls:
        for part in call.batches(quantized.config.calibration_batch):
            found = catch(inner, partial(sampled, part.x, part.step, part.cond, part.cache), output=False)
            if found is None:
                break
            full = replace(part.step, mode="full")
            expected = catch(outer, partial(reference, part.x, full, part.cond), output=True)
            assert expected is not None  # units are taken from such a call
            steps += [part.step.index] * own.append(found[0], found[1])
            if with_float:
                theirs.append(expected[0], expected[1])
            targets.append(expected[2])
    if not steps:
        return None
    own.open()
    theirs.open()
    return Samples(own, theirs if with_float else None, targets.tensor(), torch.tensor(steps))


def learn(name: str, module: nn.Module, samples: Samples, context: StepContext, settings: Reconstruction) -> None:
    """Learn the rounding of the layers in ``module``, and their activation steps if asked for, and put both in place.

    Minimises, over batches of images drawn without replacement,

        mean (output - target)^2 / n  +  lambda  mean over weights of (1 - |2 h - 1|^beta)

    over v (and log delta of the activations), by Adam, one optimizer throughout. h and beta: see `rounding`. n is the mean
    square of what rounding to nearest adds to the unit's output: with it one lambda fits units of any bits and scale. Otherwise
    this is BRECQ's loss, without its Fisher weights. The random numbers depend on ``name`` alone. Raises `NonFiniteError`.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, QuantLayer) and layer.weight_bits != OFF]
    quantizers = [q for q in module.modules() if isinstance(q, ActivationQuantizer)] if settings.step_learning_rate else []
    if not layers:  # conv_in or conv_out with end_bits=32
        return
    for layer in layers:
        layer.learning = LearnedRounding(layer.layer.weight.float(), *layer.weight_grid())
    for quantizer in quantizers:
        quantizer.log_scale = torch.zeros(context.num_steps, device=quantizer.delta.device, requires_grad=True)
    try:
        _optimize(name, module, layers, quantizers, samples, context, settings)
        for layer in layers:
            layer.set_rounding(layer.learning.rounded_up())  # type: ignore[union-attr]
        for quantizer in quantizers:
            factor = quantizer.log_scale.detach().exp()  # type: ignore[union-attr]
            factor = factor if quantizer.channels is None else factor[:, None]
            quantizer.set_steps(quantizer.delta * factor, quantizer.zero_point, quantizer.calibrated)
    finally:
        for layer in layers:
            layer.learning = None
        for quantizer in quantizers:
            quantizer.log_scale = None


def _optimize(
    name: str,
    module: nn.Module,
    layers: list[QuantLayer],
    quantizers: list[ActivationQuantizer],
    samples: Samples,
    context: StepContext,
    settings: Reconstruction,
) -> None:
    rounding = [layer.learning for layer in layers if layer.learning is not None]
    weights = sum(part.v.numel() for part in rounding)
    groups = [
        {"params": [part.v for part in rounding], "lr": settings.learning_rate},
        {"params": [quantizer.log_scale for quantizer in quantizers], "lr": settings.step_learning_rate},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.iterations))
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big"))
    power = rounding_noise(module, layers, samples, context, settings)
    with torch.enable_grad():
        for k in range(settings.iterations):
            loss = reconstruction_loss(module, samples, context, settings, generator) / power
            beta = annealed(settings.beta_start, settings.beta_end, k, settings.iterations, settings.warmup)
            if settings.regularizer and beta is not None:
                loss = loss + settings.regularizer / weights * torch.stack([part.undecided(beta) for part in rounding]).sum()
            if not bool(torch.isfinite(loss)):
                raise NonFiniteError(
                    f"The reconstruction of {name} diverged at iteration {k}: its loss is {loss.item()}. Lower "
                    "efficiency.reconstruction.learning_rate or step_learning_rate, or check weights and calibration images."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def reconstruction_loss(
    module: nn.Module, samples: Samples, context: StepContext, settings: Reconstruction, generator: torch.Generator
) -> Tensor:
    """mean (output - target)^2 on one batch."""
    count = len(samples.steps)
    index = torch.randperm(count, generator=generator)[: settings.batch_size]
    device = next(module.parameters()).device
    arguments = samples.quantized.read(index, device)
    if samples.float is not None:
        own = torch.rand(len(index), generator=generator) < settings.quantized_input
        arguments = _mixed(arguments, samples.float.read(index, device), own.to(device))
    output = _run(module, arguments, samples.steps[index].to(device), context)
    return (output - samples.targets[index].to(device).float()).square().mean()


@torch.no_grad()
def rounding_noise(
    module: nn.Module, layers: list[QuantLayer], samples: Samples, context: StepContext, settings: Reconstruction
) -> float:
    """mean (output with nearest rounding - output at the start, h = frac)^2, on one batch spread over the samples.

    1 for a unit that rounding does not touch, so that it can be divided by.
    """
    count = len(samples.steps)
    index = torch.linspace(0, count - 1, min(count, settings.batch_size)).long()
    device = next(module.parameters()).device
    arguments, steps = samples.quantized.read(index, device), samples.steps[index].to(device)
    start = _run(module, arguments, steps, context)
    learning = [layer.learning for layer in layers]
    for layer in layers:
        layer.learning = None
    nearest = _run(module, arguments, steps, context)
    for layer, variables in zip(layers, learning, strict=True):
        layer.learning = variables
    return float((nearest - start).square().mean()) or 1.0


def _run(module: nn.Module, arguments: dict[int | str, Any], steps: Tensor, context: StepContext) -> Tensor:
    args, kwargs = split_arguments(arguments)
    with context.reading_steps(steps):
        return module(*args, **kwargs).float()


def _mixed(own: dict[Any, Any], theirs: dict[Any, Any], pick: Tensor) -> dict[Any, Any]:
    """Image by image, the arguments of one or the other."""
    return {
        key: torch.where(pick.view(-1, *[1] * (value.ndim - 1)), value, theirs[key]) if isinstance(value, Tensor) else value
        for key, value in own.items()
    }
