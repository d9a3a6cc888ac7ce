"""Part ``speed``: images a second and memory of each model of the paper at its batch, and times beside what they should be.

Times are medians after a warm-up, and the device is waited for around each. Weights are random, which changes no time. A ratio
names its reference. Ratios that have an expected value are limited at full size (`limited`); times of toy networks on a machine at
work say nothing, and have no limits.
"""

import gc
import time
from collections.abc import Callable, Iterator

import torch

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.compiled import compiled, kernels_in, refused_by_torch
from iec.efficiency.cost import network_cost
from iec.efficiency.integer import with_kernels
from iec.efficiency.quantization import QuantizedNetwork
from iec.gpucheck import beside
from iec.gpucheck.models import ARCHITECTURES
from iec.gpucheck.part import Bench, Line, Part, attempted
from iec.gpucheck.run import PATIENCE
from iec.gpucheck.subject import Subject
from iec.gpucheck.timing import Timed, captured, limited, timed
from iec.io.cores import usable_cores
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.placement import Placement

BUDGET, NEEDED, TO_COMPILE = 185.0, 25.0, 75.0
"""Seconds of the part, and those that have to be left for a measurement, and for one that compiles a network."""
COMPILES = ", compiled"
UNCONDITIONAL, STEPS, INTERVAL = "ddim_cifar", 5, 5
COMPILED = ("ddim_cifar", "ldm_imagenet")
"""Compiled, too: a network takes the better part of a minute."""
REHEARSED, REHEARSED_COMPILED = ("ldm_imagenet",), ("ddim_cifar",)
PLAIN, LAST = torch.contiguous_format, torch.channels_last
VARIANTS = {
    "channels_last": (torch.float32, LAST),
    "bfloat16": (torch.bfloat16, PLAIN),
    "bfloat16, channels_last": (torch.bfloat16, LAST),
}
"""name -> dtype and order in memory of the network, in the order in which one module goes through them."""
Lines = Callable[[], Iterator[Line]]


def measure(bench: Bench) -> Iterator[Line]:
    patience = PATIENCE.get(bench.device.type, 1.0)
    end = time.monotonic() + BUDGET * patience
    for name, lines in measurements(bench).items():
        needed = TO_COMPILE if name.endswith(COMPILES) else NEEDED
        if time.monotonic() + needed * patience > end:
            yield Line.skipped(name, f"less than {needed:g} of the part's {BUDGET:g} s were left")
        else:
            yield from attempted(name, lambda n=name, lines=lines: within_memory(n, lines))  # type: ignore[misc]


PART = Part("speed", "How fast is it, how much memory does it take, and where is time lost?", measure, seconds=BUDGET)


def measurements(bench: Bench) -> dict[str, Lines]:
    """By name, what tells most first."""
    names, to_compile = (REHEARSED, REHEARSED_COMPILED) if bench.toy else (ARCHITECTURES, COMPILED)
    return {
        "the loop": lambda: loop_lines(bench),
        "quantized calls": lambda: quantized_lines(bench),
        "diffusers' DDIMPipeline": lambda: beside.ddim_lines(bench),
        "diffusers' StableDiffusionPipeline": lambda: beside.stable_diffusion_lines(bench),
        "metrics": lambda: beside.feature_lines(bench),
        **{name: lambda name=name: card_lines(bench, name) for name in names},  # type: ignore[misc]
        **{f"{name}{COMPILES}": lambda name=name: compiled_lines(bench, name) for name in to_compile},  # type: ignore[misc]
    }


def within_memory(name: str, lines: Lines) -> Iterator[Line]:
    """The lines, or that the device has too little memory; what one leaves there is given back."""
    try:
        yield from lines()
    except torch.OutOfMemoryError:
        yield Line.skipped(f"{name}: all that follows", "the device has too little memory for the paper's batch")
    finally:
        gc.collect()  # modules of diffusers are in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def loop_lines(bench: Bench) -> Iterator[Line]:
    """The sampling loop over bare calls of its network, IEC over DDIM, DeepCache over DDIM; each beside what its calls say."""
    subject = Subject.of(UNCONDITIONAL, bench)
    network, table = subject.to(torch.float32, PLAIN), subject.table(STEPS)
    plain = Sampler(table)
    iec = Sampler(table, Correction.preset("paper"), Placement("all_steps"))
    cached = Sampler(table, refresh=frozenset(range(0, STEPS, INTERVAL)))
    device, card = bench.device, subject.card
    what = f"{card.name}, batch {card.batch_size}, {STEPS} steps"
    bare = timed(subject.calls(network, table), device)
    ddim = timed(subject.trajectory(network, plain), device)
    yield limited(bench, "the loop / bare calls", ddim.seconds / bare.seconds, f"{what}; {ddim.seconds:.3g} s{ddim.gib}")
    calls = 1 + len(iec.corrected) / STEPS
    ratio = timed(subject.trajectory(network, iec), device).seconds / ddim.seconds
    yield limited(bench, "IEC / DDIM / its calls", ratio / calls, f"time {ratio:.3g}, calls {calls:g}")
    cost = network_cost(subject.unet, card.shape, 0, cut=card.cut)
    assert cost.cached is not None
    macs = (cost.full.macs + (INTERVAL - 1) * cost.cached.macs) / INTERVAL / cost.full.macs
    deepcache = timed(subject.trajectory(CachedUNetNetwork(subject.unet, card.cut), cached), device)
    ratio = deepcache.seconds / ddim.seconds
    yield Line.note("DeepCache / DDIM / its MACs", ratio / macs, remark=f"interval {INTERVAL}; time {ratio:.3g}, MACs {macs:.3g}")


def quantized_lines(bench: Bench) -> Iterator[Line]:
    """Calls at W8A8 over those in float32: imitated, and on integers; on a GPU over bfloat16, too."""
    subject, device = Subject.of(UNCONDITIONAL, bench), bench.device
    seconds = {"float32": timed(subject.call(subject.to(torch.float32, PLAIN)), device).seconds}
    quantized = subject.quantized()
    seconds["W8A8, simulated"] = timed(subject.call(quantized), device).seconds
    integers = QuantizedNetwork(with_kernels(quantized.quantized, "int8_unfused", None))
    seconds["W8A8, int8 kernels"] = timed(subject.call(integers), device).seconds
    if device.type == "cuda":
        seconds["bfloat16"] = timed(subject.call(subject.to(torch.bfloat16, LAST), torch.bfloat16), device).seconds
    for reference in {"float32", "bfloat16"} & seconds.keys():
        for name in ("W8A8, simulated", "W8A8, int8 kernels"):
            what = f"{subject.card.name}, batch {subject.card.batch_size}"
            yield Line.note(f"{name} / {reference}", seconds[name] / seconds[reference], remark=f"a call of {what}")
    yield Line.note("fused int8 kernels", remark="are of CPUs: make bench ARGS=kernels measures them")


def card_lines(bench: Bench, name: str) -> Iterator[Line]:
    """Images a second of a whole run, and the time of a call in other formats over that."""
    subject, device = Subject.of(name, bench), bench.device
    card = subject.card
    eager = timed(subject.call(subject.to(torch.float32, PLAIN)), device)
    decoder = subject.decoder
    decoding = Timed(0.0, None) if decoder is None else timed(lambda: decoder(subject.x), device)
    whole = card.steps * eager.seconds + decoding.seconds
    shares = f"batch {card.batch_size}, {card.steps} steps of {eager.seconds:.3g} s{eager.gib}"
    shares += f"; decoder {decoding.seconds:.3g} s{decoding.gib}" if decoder is not None else ""
    yield Line.note(f"{name}, float32", card.batch_size / whole, "images a second", shares)
    if eager.memory is not None:
        yield Line.note(f"{name}, float32: peak memory", max(eager.memory, decoding.memory or 0), "GiB", f"batch {card.batch_size}")
    for label, (dtype, order) in VARIANTS.items():
        other = timed(subject.call(subject.to(dtype, order), dtype), device)
        yield Line.note(f"{name}, {label} / float32", other.seconds / eager.seconds, remark=f"a call{other.gib}")
    what = f"{name}, CUDA graph / bfloat16, channels_last"
    if device.type != "cuda":
        yield Line.skipped(what, "there is no CUDA")
        return
    graph = timed(captured(subject.call(subject.to(dtype, order), dtype), device), device)
    yield Line.note(what, graph.seconds / other.seconds, remark=f"a call{graph.gib}")


def compiled_lines(bench: Bench, name: str) -> Iterator[Line]:
    """Of a call in the fastest format; on a CPU what Dynamo traces is run as it is, since a rehearsal has no minute to compile."""
    subject, device = Subject.of(name, bench), bench.device
    dtype, order = VARIANTS["bfloat16, channels_last"]
    network = subject.to(dtype, order)
    eager = timed(subject.call(network, dtype), device)
    graphs = compiled(network) if device.type == "cuda" else compiled(network, backend="eager")
    began = time.perf_counter()
    with refused_by_torch(), kernels_in(bench.folder / "compiled"):
        run = subject.call(graphs, dtype)
        run()
        took = time.perf_counter() - began
        fast = timed(run, device)
    remark = f"a call{fast.gib}; compiled in {took:.0f} s on {usable_cores()} cores"
    yield Line.note(f"{name}, compiled / bfloat16, channels_last", fast.seconds / eager.seconds, remark=remark)
