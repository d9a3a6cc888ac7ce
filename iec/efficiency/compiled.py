"""Compiled networks: what a network computes from tensors alone, as graphs of `torch.compile` with static shapes.

Nothing of a graph depends on the step. Its timestep and its index, by which per-step tables of quantizers are read, are tensors;
which feature is reused, forecasts by a clock, checks and guidance stay outside. So a network has one graph for full calls and one
for cached ones, at one batch size.
"""

import importlib.util
import itertools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from iec.efficiency.technique import Technique
from iec.errors import ConfigError, DeviceError
from iec.models import Card
from iec.sampling.corrector import Corrector
from iec.sampling.network import Network, compiled_form
from iec.sampling.solver import Solver

Backend = str | Callable[..., Any]
INDUCTOR = "inductor"
CACHE, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def compiled(network: Network, backend: Backend = INDUCTOR) -> Network:
    """``network`` on graphs, which its first calls make: that takes a minute or more. ``network`` is left as it is.

    backend: of `torch.compile`. A batch of another size, or gradients switched on, is another graph; more than 8 are refused by
    torch. Weights and scales are inputs of a graph: what is changed in them later counts. Graphs belong to what is returned, and go
    with it. eps differs from that of ``network`` by the order of sums. Raises `ConfigError` for a network without a compiled form.
    """
    return compiled_form(network, partial(_graph, backend=backend))


def require_compiles(technique: Technique, card: Card, sampler: Solver) -> None:
    """Raises `ConfigError` for what has no compiled form, or no static shapes, before any weights are loaded."""
    technique.require_compiles()
    if card.dataset is not None:
        raise ConfigError(
            f"model.compile=true: {card.name} is a closed formula, the sizes of whose products depend on their values. Use "
            "model.compile=false, or a trained model, e.g. model=ddim_cifar_small."
        )
    if type(sampler.corrector).timestep is not Corrector.timestep:
        raise ConfigError(
            "model.compile=true: corrector=timeshift tells each image a timestep of its own, and evaluates those of one timestep "
            "together, in batches of any size. Use model.compile=false, or another corrector."
        )


def require_compiler(device: torch.device) -> None:
    """Raises `DeviceError` where inductor has nothing to compile with."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise DeviceError(
            f"model.compile=true needs a C++ compiler on a CPU, and there is no {compiler}. Install one (CXX names it), or use "
            "model.compile=false."
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise DeviceError("model.compile=true needs Triton on a GPU: pip install triton. Or use model.compile=false.")


@contextmanager
def refused_by_torch() -> Iterator[None]:
    """Around first calls. Raises `ConfigError` for what torch cannot compile."""
    from torch._dynamo.exc import TorchDynamoException  # a slow import

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # diffusers' own version
            yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"torch.compile cannot compile this network here: {reason}. Use model.compile=false, or TORCH_LOGS=dynamo to see more."
        ) from error


@contextmanager
def kernels_in(folder: Path) -> Iterator[None]:
    """Inductor keeps what it compiles in a subfolder of ``folder`` and finds it there again, unless TORCHINDUCTOR_CACHE_DIR names
    another.

    A process that is killed can leave half of a kernel. So a subfolder has a mark while it is in use, and one that has it is passed
    over. It is not emptied: a lock whose heartbeat is lost has two holders, and the first may still be at work there.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # which inductor names itself, once it is imported

    before = {name: os.environ.get(name) for name in (CACHE, TRITON)}
    mark = next(mark for mark in (folder / str(k) / "unfinished" for k in itertools.count()) if _is_new(mark))
    if before[CACHE] in (None, default_cache_dir()):
        os.environ[CACHE] = str(mark.parent)
    if before[TRITON] is None:  # else the first network's folder would stay in it
        os.environ[TRITON] = str(mark.parent / "triton")
    try:
        yield
        mark.unlink(missing_ok=True)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _is_new(mark: Path) -> bool:
    """Makes the file ``mark``; whether it was not there."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _graph(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    return torch.compile(_with_own_code(function), fullgraph=True, dynamic=False, backend=backend)


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Torch keeps graphs by code, and counts them: those of other networks would count against this one's limit."""

    def call(*args: Any) -> Any:
        return function(*args)

    return FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
