"""Part ``bytes``: cells computed twice, in another order of micro-batches, after a kill, and on two devices give the same bytes.

The real runner, on a bundled model. Bytes are those of the shards: images and, in float32, trajectories. Where they differ, the
lines of `nondeterministic_operators` say which operators torch has no deterministic algorithm for.
"""

import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf

from iec.gpucheck.cells import cell_of
from iec.gpucheck.option_list import ON_CACHEQUANT, ON_DEEPCACHE, ON_W8A8
from iec.gpucheck.part import Bench, Line, Part, attempted
from iec.io.cores import intra_op_threads
from iec.io.workers import Send, WorkerError, run_workers
from iec.runs.cell import Cell
from iec.runs.runner import run_cell
from iec.runs.sampling import sample_batches
from iec.runs.store import Store
from iec.runs.worker import PRELOAD

Overrides = tuple[str, ...]
CELLS: Mapping[str, Overrides] = {
    "none": (),
    "IEC, eta = 1": ("iec=all_steps", "sampler.eta=1"),
    "bfloat16": ("model.dtype=bfloat16",),
    "w8a8": ON_W8A8,
    "deepcache + affine": (*ON_DEEPCACHE, "corrector=affine", "corrector.calibration_images=2"),
    "cachequant_w8a8 + IEC": (*ON_CACHEQUANT, "iec=all_steps"),
}
TOY_CELLS = ("deepcache + affine",)
STEPS, BATCH, BATCHES = 3, 2, 2
Bytes = dict[str, tuple[str, str | None]]
"""Name of a shard -> the hashes of its images and of its trajectories."""


def measure(bench: Bench) -> Iterator[Line]:
    for name, overrides in CELLS.items():
        if name in TOY_CELLS or not bench.toy:
            yield from attempted(name, partial(cell_lines, bench, name, overrides))
    first = CELLS[TOY_CELLS[0]]
    yield from attempted("kill and resume", partial(resume_lines, bench, first))
    yield from attempted("two processes", partial(parallel_lines, bench, first))
    yield from attempted("deterministic algorithms", partial(nondeterministic_operators, bench, CELLS))


PART = Part("bytes", "Do two runs, two orders, a killed run and two devices give the same bytes?", measure, seconds=60)


def cell_lines(bench: Bench, name: str, overrides: Overrides) -> Iterator[Line]:
    """Twice from the start, calibrations too, and with the second micro-batch computed first."""
    once, twice = (computed(small_cell(bench, f"{name} {k}", overrides)) for k in (1, 2))
    yield different(f"{name}: twice", once, twice)
    for shard in (1, 0):
        other = small_cell(bench, f"{name} turned", overrides, "processes=1", "shards=2", f"shard={shard}")
        run_cell(other)
    yield different(f"{name}: second micro-batch first", once, stored_bytes(other))


def resume_lines(bench: Bench, overrides: Overrides) -> Iterator[Line]:
    """A process that is killed in its second micro-batch, and the same cell finished by another."""
    whole = computed(small_cell(bench, "whole", overrides))
    killed = small_cell(bench, "killed", overrides)
    task = OmegaConf.to_container(killed.config, resolve=True)
    try:
        run_workers(_killed, {"killed": task}, lambda _: None, forked=bench.device.type == "cpu", preload=PRELOAD)
    except WorkerError as error:
        if "SIGKILL" not in str(error):
            raise
    there = len([*(killed.folder / "shards").glob("*.npz")])
    yield Line.at_most("kill and resume: shards lost", abs(there - 1), 0, "shards", "one of two was finished before the kill")
    yield different("kill and resume", whole, computed(killed))


def _killed(config: Any, send: Send) -> None:
    """In a process of its own, which ends within the second micro-batch."""
    cell = Cell.from_config(OmegaConf.create(config))
    taken = 0

    def advance() -> None:
        nonlocal taken
        taken += 1
        if taken > STEPS:
            os.kill(os.getpid(), signal.SIGKILL)

    with intra_op_threads(cell.split.threads):
        sample_batches(cell, Store.open(cell.folder, cell.identity), cell.batches, advance)


def parallel_lines(bench: Bench, overrides: Overrides) -> Iterator[Line]:
    """On two devices; on a CPU, which is one device, in two processes."""
    if bench.device.type == "cpu":
        split = ("processes=2",)
    elif bench.device.index is None and (count := torch.cuda.device_count()) > 1:
        split = ("devices=2",)
    else:
        reason = f"{bench.device} was asked for" if bench.device.index is not None else f"there is {count}"
        yield Line.skipped("devices=2", f"needs two devices, and {reason}")
        return
    whole = computed(small_cell(bench, "one process", overrides))
    yield different(split[0], whole, computed(small_cell(bench, "two processes", overrides, *split)))


def nondeterministic_operators(bench: Bench, cells: Mapping[str, Overrides]) -> Iterator[Line]:
    """Of each cell, those that torch warns of when it is asked for deterministic algorithms."""
    for name, overrides in cells.items():
        if bench.toy and name not in TOY_CELLS:
            continue
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run_cell(small_cell(bench, f"{name} watched", overrides))
        finally:
            torch.use_deterministic_algorithms(False)
        names = operators([str(warning.message) for warning in caught])
        yield Line.note(f"{name}: operators without a deterministic algorithm", len(names), "operators", ", ".join(names))


def operators(messages: Iterable[str]) -> list[str]:
    """Named in torch's warnings; its one about CuBLAS names a setting in place of an operator."""
    about = [message for message in messages if "deterministic" in message]
    return sorted({"CuBLAS" if "CuBLAS" in message else message.split(" does not have")[0][:60] for message in about})


def small_cell(bench: Bench, name: str, overrides: Overrides, *split: str) -> Cell:
    """In the folder ``name``, with its own calibrations. split: how it is spread, by default in this process alone."""
    images = BATCH * BATCHES
    count = (f"num_images={images}", f"batch_size={BATCH}", f"trace_images={images}", f"sampler.steps={STEPS}")
    place = (f"device={bench.device}", *(split or ("processes=1",)))
    return cell_of(bench.folder / name, *count, *place, *overrides)


def computed(cell: Cell) -> Bytes:
    run_cell(cell)
    return stored_bytes(cell)


def stored_bytes(cell: Cell) -> Bytes:
    """Of a finished cell."""
    store = Store.open(cell.folder, cell.identity)
    commits = {store.shard(indices).name: store.commit(indices) for indices in cell.batches}
    return {name: (commit.sha256, commit.trace_sha256) for name, commit in commits.items() if commit is not None}


def different(what: str, a: Bytes, b: Bytes) -> Line:
    """Micro-batches whose images or trajectories differ, or are not there."""
    count = sum(a.get(name) != b.get(name) for name in {*a, *b})
    images = sum(a.get(name, ("",))[0] != b.get(name, ("",))[0] for name in {*a, *b})
    remark = f"images of {images}, the others in trajectories alone" if count else ""
    return Line.at_most(what, count, 0, f"of {BATCHES} micro-batches differ", remark)
