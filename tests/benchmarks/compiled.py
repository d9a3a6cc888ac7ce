"""Compiled, bfloat16 and channels-last network calls beside eager ones, in turn in one process:

    make bench ARGS=compiled                                  both bundled models, all networks, batch sizes 8 and 32
    make bench ARGS="compiled ddim_fashion_small 8 deepcache" one model, batch size and network
    make bench ARGS="compiled eager"                          without what is compiled, in a minute

Prints milliseconds of CPU time, and the time of the eager float32 network over each. One thread. A network takes a minute or two to
compile, and many on a busy machine; its line is printed when it is there.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.compiled import compiled, kernels_in
from iec.io.environment import describe_device, instruction_sets
from iec.models import Model, load_model
from iec.sampling.network import FeatureCache, Network
from tests.benchmarks.kernels import CACHED, FULL, INTERVAL, Subject, head, in_turn, ms, show

MODELS, BATCHES = ("ddim_fashion_small", "ddim_cifar_small"), ("8", "32")
REPEATS, EAGER = 5, "eager"
COLUMNS = ["model", "batch", "network", "eager (ms)", "compiled (ms)", "float32 / eager", "float32 / compiled",
           "minutes to compile", "distance of eps"]  # fmt: skip


def deepcache(model: Model) -> Network:
    return CachedUNetNetwork(model.unet, model.card.cut)


def w8a8(model: Model, kernels: str = "simulated") -> Network:
    with tempfile.TemporaryDirectory() as folder:
        return Subject(model.card.name, model).quantized(Path(folder), kernels)


def plain(model: Model) -> Network:
    return model.network


NETWORKS: dict[str, tuple[Callable[[Model], Network], dict[str, object]]] = {
    "float32": (plain, {}),
    "channels_last": (plain, {"channels_last": True}),
    "bfloat16": (plain, {"dtype": "bfloat16"}),
    "both": (plain, {"dtype": "bfloat16", "channels_last": True}),
    "deepcache": (deepcache, {}),
    "w8a8": (w8a8, {}),
    "int8": (partial(w8a8, kernels="int8"), {}),
}
"""What makes a network, and how its model is loaded. both: bfloat16 and channels_last. int8 is not compiled."""


@torch.no_grad()
def seconds(networks: dict[str, Network], x: Tensor) -> dict[str, float]:
    """Of a call, or for DeepCache of the mean call of `INTERVAL` steps."""
    runs: dict[str, Callable[[], object]] = {}
    for label, network in networks.items():
        runs[label] = partial(network, x, FULL)
        feature = network(x, FULL).feature
        if feature is not None:
            runs[f"{label}, cached"] = partial(network, x, CACHED, None, FeatureCache(feature, FULL))
    found = in_turn(runs, REPEATS)

    def mean(label: str) -> float:
        cached = found.get(f"{label}, cached", found[label])
        return (found[label] + (INTERVAL - 1) * cached) / INTERVAL

    return {label: mean(label) for label in networks}


@torch.no_grad()
def first_calls(network: Network, x: Tensor) -> Tensor:
    """eps of a full call; a cached one is made, too, where there is one."""
    prediction = network(x, FULL)
    if prediction.feature is not None:
        network(x, CACHED, None, FeatureCache(prediction.feature, FULL))
    return prediction.eps.double()


def line(name: str, batch: int, label: str, compiles: bool, folder: Path) -> list[str]:
    make, settings = NETWORKS[label]
    reference, eager = load_model(name, "cpu"), make(load_model(name, "cpu", **settings))  # type: ignore[arg-type]
    networks, x, about = {"float32": reference.network, "eager": eager}, torch.randn(batch, *reference.card.shape), ["", ""]
    if compiles and label != "int8":
        networks["compiled"], began = compiled(eager), time.perf_counter()
        with kernels_in(folder):
            found = first_calls(networks["compiled"], x)
        took, expected = time.perf_counter() - began, first_calls(eager, x)
        about = [f"{took / 60:.1f}", f"{float((found - expected).norm() / expected.norm()):.0e}"]
    times = seconds(networks, x)
    calls = [ms(times.get(way)) for way in ("eager", "compiled")]
    ratios = [f"{times['float32'] / times[way]:.2f}" if way in times else "" for way in ("eager", "compiled")]
    return [f"`{name}`", str(batch), label, *calls, *ratios, *about]


def main(words: Sequence[str]) -> None:
    """words: models, batch sizes and networks, see the module's docstring."""
    known = (*MODELS, *BATCHES, *NETWORKS, EAGER)
    if unknown := set(words) - {*known}:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; choose {', '.join(known)}")
    compiles = EAGER not in words
    if compiles and shutil.which("g++") is None:
        raise SystemExit("torch.compile needs a C++ compiler (g++) on a CPU")

    def chosen(choices: Sequence[str]) -> list[str]:
        return [word for word in choices if word in words] or list(choices)

    torch.set_num_threads(1)
    print(f"{describe_device(torch.device('cpu'))}; {', '.join(instruction_sets())}")
    head(COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen(MODELS):
            for batch in chosen(BATCHES):
                for label in chosen(tuple(NETWORKS)):
                    show([line(name, int(batch), label, compiles, Path(folder))])
