"""Seconds of one network call at W8A8 on integers, beside the float network's, in turn in one process:

    make bench ARGS=kernels               the bundled models and the CIFAR-10 architecture, batch 1, 8 and 32
    make bench ARGS="kernels compiled"    and beside torch.compile, which takes minutes for each network

Prints the CPU's instruction sets and a Markdown table of milliseconds and ratios. Weights and calibration do not change the time.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from iec.efficiency.integer import with_kernels
from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedNetwork, calibrate, quantize_unet
from iec.io.environment import describe_device, instruction_sets
from iec.models import load_model
from iec.models.unet import UNetNetwork
from iec.sampling.network import Network, Step

MODELS, BATCHES = ("ddim_cifar_small", "ddim_fashion_small", "ddim_cifar"), (1, 8, 32)
STEP = Step(0, 500)


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: median(times[1:]) for name, times in seconds.items()}


def integer(unet: nn.Module, shape: tuple[int, ...], folder: Path, kernels: str = "int8", **settings: object) -> Network:
    """The network at W8A8, calibrated on noise."""
    quantized = quantize_unet(unet, PTQConfig(calibration_images=1, scale_rule="max", **settings), 1)  # type: ignore[arg-type]
    calibrate(quantized, UNetNetwork(quantized.unet), [CalibrationCall(torch.randn(1, *shape), STEP)])
    return QuantizedNetwork(quantized if kernels == "simulated" else with_kernels(quantized, kernels, folder))


def networks(name: str, folder: Path, compiled: bool) -> tuple[dict[str, Network], tuple[int, ...]]:
    """By their column, and the shape of an image."""
    model = load_model(name, device="cpu", random_weights=name == "ddim_cifar")
    unet, shape = model.unet, model.card.shape
    half = copy.deepcopy(unet).to(torch.bfloat16).to(memory_format=torch.channels_last)
    found: dict[str, Network] = {
        "int8": integer(unet, shape, folder),
        "int8, symmetric": integer(unet, shape, folder, weight_symmetric=True),
        "int8 unfused": integer(unet, shape, folder, "int8_unfused"),
        "simulated": integer(unet, shape, folder, "simulated"),
        "float32": UNetNetwork(unet),
        "bfloat16": UNetNetwork(half),
    }
    if compiled:
        for column, module in (("float32 compiled", copy.deepcopy(unet)), ("bfloat16 compiled", copy.deepcopy(half))):
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
            found[column] = UNetNetwork(module)
    return found, shape


@torch.no_grad()
def call_seconds(found: dict[str, Network], shape: tuple[int, ...], batch: int, repeats: int = 3) -> dict[str, float]:
    x = torch.randn(batch, *shape)
    return in_turn({name: (lambda network=network: network(x, STEP)) for name, network in found.items()}, repeats)


def float32_over_int8() -> float:
    """Of the CIFAR-10 architecture at batch 8."""
    with tempfile.TemporaryDirectory() as folder:
        found, shape = networks("ddim_cifar", Path(folder), compiled=False)
        seconds = call_seconds({name: found[name] for name in ("int8", "float32")}, shape, 8)
    return seconds["float32"] / seconds["int8"]


def table(compiled: bool, models: tuple[str, ...] = MODELS, batches: tuple[int, ...] = BATCHES) -> None:
    print(f"{describe_device(torch.device('cpu'))}; {', '.join(instruction_sets())}\n")
    with tempfile.TemporaryDirectory() as folder:
        for k, name in enumerate(models):
            found, shape = networks(name, Path(folder), compiled)
            if not k:
                print("| model | batch | " + " | ".join(f"{column} (ms)" for column in found), end=" | ")
                print("float32 / int8 | bfloat16 / int8 | best compiled / int8 |")
                print("|---" * (len(found) + 5) + "|")
            for batch in batches:
                seconds = call_seconds(found, shape, batch)
                best = min((s for column, s in seconds.items() if "compiled" in column), default=float("nan"))
                ratios = [other / seconds["int8"] for other in (seconds["float32"], seconds["bfloat16"], best)]
                cells = [name, str(batch), *(f"{1e3 * s:.1f}" for s in seconds.values()), *(f"{ratio:.2f}" for ratio in ratios)]
                print(f"| {' | '.join(cells)} |", flush=True)
