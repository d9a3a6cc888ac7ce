"""Network calls at W8A8 on integers beside those of the float network, in turn in one process, and peak memory:

    make bench ARGS=kernels                               all of it
    make bench ARGS="kernels calls ddim_cifar_small"      one part, of these models alone

The parts: ``calls``: milliseconds and ratios; ``caching``: what DeepCache gains on top; ``memory``: the peak of `ldm_imagenet`
until its first call. One thread. Prints the CPU's instruction sets and Markdown tables. Weights and calibration do not change the
time: those of large models are random. Beside torch.compile: see `compiled`.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.integer import with_kernels
from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedNetwork, calibrate, quantize_unet
from iec.io.environment import describe_device, instruction_sets
from iec.models import Model, load_model
from iec.models.unet import UNetNetwork
from iec.sampling.network import FeatureCache, Network, Step
from tests.benchmarks.memory import peak_of

BATCHES = {"ddim_cifar_small": (1, 8, 32), "ddim_fashion_small": (1, 8, 32), "ddim_cifar": (1, 8, 32), "ldm_imagenet": (1,)}
"""By model."""
LARGE = ("ddim_cifar", "ldm_imagenet")
FULL, CACHED = Step(0, 500), Step(1, 499, "cached")
INTERVAL = 5
PREPARE = """
import torch, iec
from iec.sampling.network import Step
model = iec.load_model("ldm_imagenet", random_weights=True, device="cpu")
table = iec.Timetable.spaced("uniform", 2, model.card.schedule)
config = iec.PTQConfig(scale_rule="max", calibration_images=1)
network = iec.quantize(model, config, table, artifacts={folder!r}, kernels={kernels!r})
x, cond = torch.randn(2, *model.card.shape), torch.randn(2, *model.card.tokens)
del model
with torch.no_grad():
    network(x, Step(0, table.pairs[0][0]), cond)
"""
"""What a cell does until its first call, under guidance."""


def in_turn(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn, after one warm-up each: CPU time of this process, of one thread, in which other work
    on the machine does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    torch.set_num_threads(threads)
    return {name: median(times[1:]) for name, times in seconds.items()}


@dataclass(frozen=True)
class Subject:
    """A model, and inputs for it."""

    name: str
    model: Model

    @classmethod
    def of(cls, name: str) -> "Subject":
        return cls(name, load_model(name, device="cpu", random_weights=name in LARGE))

    def input(self, batch: int) -> tuple[Tensor, Tensor | None]:
        """x and cond."""
        card = self.model.card
        return torch.randn(batch, *card.shape), None if card.tokens is None else torch.randn(batch, *card.tokens)

    def quantized(self, folder: Path, kernels: str = "int8", **settings: bool) -> QuantizedNetwork:
        """At W8A8, calibrated on noise for a full and a cached step."""
        quantized = quantize_unet(self.model.unet, PTQConfig(calibration_images=1, scale_rule="max", **settings), 2)
        x, cond = self.input(1)
        calibrate(quantized, UNetNetwork(quantized.unet), [CalibrationCall(x, Step(i, 500), cond) for i in range(2)])
        return QuantizedNetwork(with_kernels(quantized, kernels, folder))

    def bfloat16(self) -> nn.Module:
        return copy.deepcopy(self.model.unet).to(torch.bfloat16).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def seconds(self, networks: dict[str, Network], batch: int, repeats: int = 3) -> dict[str, float]:
        x, cond = self.input(batch)
        of_type = {dtype: None if cond is None else cond.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        runs = {
            name: partial(network, x, FULL, of_type[torch.bfloat16 if name == "bfloat16" else torch.float32])
            for name, network in networks.items()
        }
        return in_turn(runs, repeats)


def float32_over_int8() -> float:
    """Of the CIFAR-10 architecture at batch 8."""
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject.of("ddim_cifar")
        seconds = subject.seconds({"int8": subject.quantized(Path(folder)), "float32": UNetNetwork(subject.model.unet)}, 8)
    return seconds["float32"] / seconds["int8"]


def calls(subject: Subject, folder: Path) -> list[list[str]]:
    networks: dict[str, Network] = {
        "int8": subject.quantized(folder),
        "float32": UNetNetwork(subject.model.unet),
        "bfloat16": UNetNetwork(subject.bfloat16()),
    }
    if subject.name != "ldm_imagenet":  # each takes as long again, and as much memory
        networks["symmetric"] = subject.quantized(folder, weight_symmetric=True)
        networks["unfused"] = subject.quantized(folder, "int8_unfused")
        networks["simulated"] = subject.quantized(folder, "simulated")
    lines = []
    for batch in BATCHES[subject.name]:
        seconds = subject.seconds(networks, batch)
        times = [ms(seconds.get(column)) for column in ("int8", "symmetric", "unfused", "simulated", "float32", "bfloat16")]
        ratios = [f"{seconds[column] / seconds['int8']:.2f}" for column in ("float32", "bfloat16")]
        lines.append([f"`{subject.name}`", str(batch), *times, *ratios])
    return lines


@torch.no_grad()
def caching(subject: Subject, folder: Path) -> list[list[str]]:
    """Full and cached calls, and what an interval of `INTERVAL` steps gains."""
    batch = 1 if subject.name == "ldm_imagenet" else 8
    (x, cond), unet, quantized = subject.input(batch), subject.model.unet, subject.quantized(folder)
    cut = subject.model.card.cut
    networks: dict[str, Network] = {
        "float32": CachedUNetNetwork(unet, cut),
        "int8": QuantizedNetwork(quantized.quantized, CachedUNetNetwork(quantized.quantized.unet, cut)),
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, network in networks.items():
        feature = network(x, FULL, cond, None).feature
        assert feature is not None
        runs[f"{name} full"] = partial(network, x, FULL, cond, None)
        runs[f"{name} cached"] = partial(network, x, CACHED, cond, FeatureCache(feature, FULL))
    seconds, lines = in_turn(runs, 3), []
    for name in networks:
        full, cached = seconds[f"{name} full"], seconds[f"{name} cached"]
        mean = (full + (INTERVAL - 1) * cached) / INTERVAL
        gains = [f"{full / mean:.2f}", f"{seconds['float32 full'] / mean:.2f}"]
        lines.append([f"`{subject.name}`", str(batch), name, ms(full), ms(cached), *gains])
    return lines


def memory(folder: Path) -> list[list[str]]:
    """Of processes of their own: a first cell calibrates, and a later one reads what is stored."""
    lines = []
    for kernels, run in (("simulated", "first"), ("int8", "first"), ("int8", "later")):
        gigabytes = peak_of(PREPARE.format(folder=str(folder / kernels), kernels=kernels))
        lines.append([kernels, run, f"{gigabytes:.2f}"])
    sizes = {path.name.split("-")[0]: path.stat().st_size / 1e9 for path in (folder / "int8").glob("*.safetensors")}
    return [*lines, *([f"file of {kind}", "", f"{size:.2f}"] for kind, size in sizes.items())]


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f}"


PARTS = {
    "calls": (
        calls,
        ["model", "batch", "int8 (ms)", "symmetric", "unfused", "simulated", "float32", "bfloat16",
         "float32 / int8", "bfloat16 / int8"],
    ),
    "caching": (
        caching,
        ["model", "batch", "kernels", "full call (ms)", "cached call",
         f"full / mean of N = {INTERVAL}", "float32 full / that mean"],
    ),
}  # fmt: skip


def main(words: Sequence[str]) -> None:
    """words: parts and models, see the module's docstring."""
    parts = [word for word in words if word in (*PARTS, "memory")] or [*PARTS, "memory"]
    names = [word for word in words if word in BATCHES] or list(BATCHES)
    if unknown := set(words) - {*PARTS, "memory", *BATCHES}:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; choose {', '.join((*PARTS, 'memory', *BATCHES))}")
    torch.set_num_threads(1)
    print(f"{describe_device(torch.device('cpu'))}; {', '.join(instruction_sets())}")
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            if part == "memory":
                head(["`ldm_imagenet`, W8A8", "run", "peak memory (GB)"])
                show(memory(Path(folder)))
            else:
                measure, columns = PARTS[part]
                head(columns)
                for name in names:
                    show(measure(Subject.of(name), Path(folder)))


def head(columns: Sequence[str]) -> None:
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def show(found: Sequence[Sequence[str]]) -> None:
    print("\n".join(f"| {' | '.join(line)} |" for line in found), flush=True)
