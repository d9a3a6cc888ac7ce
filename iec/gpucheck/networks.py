"""Part ``networks``: each architecture of the paper on the device against float32 on the CPU, in each arithmetic.

Its UNet or transformer, its decoder and its text encoder, with random weights. For the limits see `iec.gpucheck.arithmetic`.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from iec.gpucheck.arithmetic import ARITHMETICS, FLOAT32, TF32, Arithmetic, compared, depth, supported
from iec.gpucheck.models import ARCHITECTURES, small_card
from iec.gpucheck.part import Bench, Line, Part, attempted
from iec.models.conditioning import Prompts
from iec.models.decoder import Decoder
from iec.models.source import Source
from iec.models.text import TextEncoder
from iec.models.unet import network_of
from iec.sampling.network import Step
from iec.sampling.noise import Noise

IMAGES = (0, 1)
TIMESTEP = 500
TEXTS = ("", "a photograph of an astronaut")


def measure(bench: Bench) -> Iterator[Line]:
    for name in ARCHITECTURES:
        yield from attempted(name, partial(architecture_lines, bench, name))


PART = Part("networks", "Do the networks compute what they compute on a CPU?", measure, seconds=80)


def architecture_lines(bench: Bench, name: str) -> Iterator[Line]:
    """One line for each component and arithmetic. Decoders are compared in float32 and TF32: they stay in float32."""
    model = Source.of(small_card(name, bench.size), random_weights=True).load("cpu")
    x = Noise(0, IMAGES, model.card.shape).initial(torch.float32)
    cond = None if (both := model.cond(IMAGES)) is None else both[:, 1]  # without guidance, which amplifies what rounding does
    eps = predicted(model.unet, x, cond)
    for arithmetic in supported(bench.device, ARITHMETICS):
        module = on(bench.device, model.unet, arithmetic.dtype)
        with arithmetic.active(bench.device):
            value = predicted(module, x.to(bench.device), None if cond is None else moved(cond, bench.device, arithmetic))
        yield compared(f"{name}: network", arithmetic, value, eps, depth(module))
        del module, value  # before the next one is there
    if model.decoder is not None:
        yield from decoder_lines(bench, name, model.decoder, x)
    if isinstance(model.conditioner, Prompts):
        yield from text_lines(bench, name, model.conditioner.encoder)


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


def decoder_lines(bench: Bench, name: str, decoder: Decoder, z: Tensor) -> Iterator[Line]:
    """In float32 and TF32: decoders stay in float32. Latents of a VQModel lie near codes: between two the nearest one is chance."""
    if (codes := getattr(decoder.module, "quantize", None)) is not None:
        z = near_codes(codes.embedding.weight, z) * decoder.scaling_factor
    images = decoder(z)
    for arithmetic in supported(bench.device, (FLOAT32, TF32)):
        module = on(bench.device, decoder.module, arithmetic.dtype)
        with arithmetic.active(bench.device):
            value = replace(decoder, module=module)(z.to(bench.device))
        yield compared(f"{name}: decoder", arithmetic, value, images, depth(module))


def near_codes(codes: Tensor, z: Tensor) -> Tensor:
    """Like z [B, C, h, w]: codes [K, C] taken in turn, each moved a little towards z."""
    chosen = codes[torch.arange(z[:, 0].numel()) % len(codes)].unflatten(0, z[:, 0].shape).movedim(-1, 1)
    return chosen + 1e-3 * codes.std() * z


def text_lines(bench: Bench, name: str, encoder: TextEncoder) -> Iterator[Line]:
    states = encoder(TEXTS)
    for arithmetic in supported(bench.device, ARITHMETICS):
        model = on(bench.device, encoder.model, arithmetic.dtype)
        with arithmetic.active(bench.device):
            value = TextEncoder(model, encoder.tokenizer)(TEXTS)
        yield compared(f"{name}: text encoder", arithmetic, value, states, depth(model))
