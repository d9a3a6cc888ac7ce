"""Each architecture of the paper on the device against the CPU: its predictor, its decoder, its text encoder."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from iec.gpucheck.arithmetic import ARITHMETICS, FLOAT16, FLOAT32, TF32, Arithmetic, depth, relative_error
from iec.gpucheck.models import small_card
from iec.gpucheck.part import Bench, Line
from iec.models.decoder import Decoder
from iec.models.model import Source
from iec.models.unet import network_of
from iec.sampling.network import Step
from iec.sampling.noise import Noise

IMAGES = (0, 1)
TIMESTEP = 500


def architecture_lines(bench: Bench, name: str) -> Iterator[Line]:
    """One line for each component and arithmetic. Decoders are compared in float32 and TF32: they stay in float32."""
    model = Source.of(small_card(name, bench.size), random_weights=True).load("cpu")
    x = Noise(0, IMAGES, model.card.shape).initial(torch.float32)
    cond = None if (both := model.cond(IMAGES)) is None else both[:, 1]  # without guidance, which amplifies what rounding does
    eps = predicted(model.unet, x, cond)
    for arithmetic in supported(bench.device, ARITHMETICS):
        module = on(bench.device, model.unet, arithmetic.dtype)
        with arithmetic.active():
            value = predicted(module, x.to(bench.device), None if cond is None else moved(cond, bench.device, arithmetic))
        yield compared(f"{name}: network", arithmetic, value, eps, depth(module))
        del module, value
    if model.decoder is not None:
        yield from decoder_lines(bench, name, model.decoder, x)


def supported(device: torch.device, arithmetics: tuple[Arithmetic, ...]) -> list[Arithmetic]:
    """A CPU has no TF32, which would be float32 under another name, and is slow in float16, which it has no units for."""
    return [arithmetic for arithmetic in arithmetics if device.type == "cuda" or arithmetic not in (TF32, FLOAT16)]


def predicted(module: nn.Module, x: Tensor, cond: Tensor | None) -> Tensor:
    """eps of one call."""
    with torch.no_grad():
        return network_of(module)(x, Step(0, TIMESTEP), cond).eps


def on(device: torch.device, module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy."""
    return nn.Module.to(copy.deepcopy(module), device, dtype)  # diffusers' own warns of a dtype


def moved(cond: Tensor, device: torch.device, arithmetic: Arithmetic) -> Tensor:
    """Labels stay integers."""
    return cond.to(device, arithmetic.dtype if cond.is_floating_point() else cond.dtype)


def compared(what: str, arithmetic: Arithmetic, value: Tensor, reference: Tensor, size: tuple[int, int]) -> Line:
    """The line of one comparison; size: see `depth`."""
    error, (layers, terms) = relative_error(value, reference), size
    limit = arithmetic.limit(layers, terms)
    return Line.at_most(f"{what}, {arithmetic.name}", error, limit, "relative RMS error", f"{layers} layers, sums of {terms}")


def decoder_lines(bench: Bench, name: str, decoder: Decoder, z: Tensor) -> Iterator[Line]:
    images = decoder(z)
    for arithmetic in supported(bench.device, (FLOAT32, TF32)):
        module = on(bench.device, decoder.module, arithmetic.dtype)
        with arithmetic.active():
            value = replace(decoder, module=module)(z.to(bench.device))
        yield compared(f"{name}: decoder", arithmetic, value, images, depth(module))
