"""Seconds and memory of work on a device."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from iec.gpucheck.part import Bench, Line

REPEATS, SLOW = 3, 3.0
"""How often work is timed; once on a CPU, and if it takes `SLOW` seconds or more."""
OVERHEAD = 1.1
"""Limit of a time over the one that it should be."""
Run = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """seconds: the median of the repeats. memory: GiB that torch held at most meanwhile, tensors that were there before included;
    None on a CPU.
    """

    seconds: float
    memory: float | None

    @property
    def gib(self) -> str:
        return "" if self.memory is None else f", {self.memory:.2f} GiB"


def timed(run: Run, device: torch.device) -> Timed:
    """``run`` after one warm-up; the device is waited for before and after each."""
    seconds_of(run, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken = [seconds_of(run, device)]
    while device.type == "cuda" and len(taken) < REPEATS and taken[0] < SLOW:
        taken.append(seconds_of(run, device))
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return Timed(median(taken), memory)


def seconds_of(run: Run, device: torch.device) -> float:
    """Of one run, until the device has finished it."""
    wait_for(device)
    began = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def captured(run: Run, device: torch.device) -> Run:
    """``run`` as a CUDA graph, which repeats its kernels on the same memory. It must not read values of tensors."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # torch asks for warm-ups on another stream
            for _ in range(REPEATS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    return graph.replay


def limited(bench: Bench, what: str, ratio: float, remark: str) -> Line:
    """A time over the one that it should be; at toy size without a limit."""
    return Line.note(what, ratio, remark=remark) if bench.toy else Line.at_most(what, ratio, OVERHEAD, remark=remark)
