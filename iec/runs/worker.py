"""The processes that share the missing micro-batches of a cell on one machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from iec.io.cores import intra_op_threads
from iec.io.progress import Advance
from iec.io.runtime import keep_freed_memory
from iec.io.workers import Send, run_workers
from iec.runs.cell import Cell
from iec.runs.parallel import UNSPLIT, Batch
from iec.runs.sampling import sample_batches
from iec.runs.store import Store

PRELOAD = ("iec.runs.run", "diffusers.models.unets.unet_2d")
"""Slow to import, and needed by every process."""


@dataclass(frozen=True)
class _Part:
    """Of one process. config: of the cell, plain values."""

    config: dict[str, Any]
    batches: list[Batch]


def sample_in_processes(config: DictConfig, batches: Sequence[Batch], places: Sequence[str], advance: Advance) -> None:
    """Deal the micro-batches out to one process on each of the devices ``places``; ``advance`` is called for each step.

    Raises `iec.io.workers.WorkerError`.
    """
    parts = {}
    for k, device in enumerate(places):
        name = device if places.count(device) == 1 else f"{device}, process {k}"
        own = OmegaConf.merge(config, UNSPLIT, {"device": device, "logger": {"name": "none"}})
        parts[name] = _Part(OmegaConf.to_container(own, resolve=True), list(batches[k :: len(places)]))  # type: ignore[arg-type]
    run_workers(_sample, parts, lambda _: advance(), forked=places[0] == "cpu", preload=PRELOAD)


def _sample(part: _Part, send: Send) -> None:
    """In a process: sends a value after each step."""
    keep_freed_memory()
    cell = Cell.from_config(OmegaConf.create(part.config))
    with intra_op_threads(cell.split.threads):
        sample_batches(cell, Store.open(cell.folder, cell.identity), part.batches, lambda: send(None))
