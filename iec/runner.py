"""Compute a cell: prepare the network, sample what is missing, score what is there."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from iec.cell import Cell
from iec.efficiency.cost import Cost
from iec.environment import describe_device, environment
from iec.errors import StoreError
from iec.files import write_atomic
from iec.images import grid, save_png
from iec.loggers import log_cell
from iec.progress import stage
from iec.sampling import micro_batches, sample_batch
from iec.scoring import Scorer, stored_record
from iec.store import Store, read_json, write_json

log = logging.getLogger(__name__)
PREPARED = "prepared.json"
"""What was known once the network was prepared: the refresh steps, and what calls cost."""


@dataclass(frozen=True)
class Result:
    """A finished cell: its manifest (images, calls, seconds) and its scores (None with metrics=none)."""

    cell: Cell
    store: Store
    manifest: dict[str, Any]
    record: dict[str, Any] | None

    @cached_property
    def cost(self) -> Cost | None:
        """Of the network's calls; None where the technique does not tell."""
        prepared = read_json(self.cell.folder / PREPARED)
        return Cost.from_dict(prepared["cost"]) if prepared and prepared["cost"] else None

    def shards(self) -> Iterator[np.ndarray]:
        """uint8 [B, H, W, 3], a shard at a time."""
        return self.store.read_images(self.cell.batches, self.cell.num_images)

    def first_images(self, count: int) -> np.ndarray:
        """The images 0 .. count - 1 (or all, if fewer), uint8 [n, H, W, 3]."""
        count = min(count, self.cell.num_images)
        return np.concatenate(list(self.store.read_images(micro_batches(count, self.cell.batch_size), count)))

    def states(self) -> np.ndarray:
        """float32 [T + 1, trace_images, C, H, W]."""
        return self.store.read_states(self.cell.batches, self.cell.trace_images)


def run_from_config(config: DictConfig) -> float | None:
    """What ``run.py`` does with one configuration: returns the first score, or None without metrics."""
    result = run_cell(Cell.from_config(config))
    show(result)
    log_cell(config, result.cell.slug, result.manifest, result.record, result.cell.folder / "grid.png")
    return None if result.record is None else next(iter(result.record["scores"].values()))["value"]


def run_cell(cell: Cell) -> Result:
    """Finish a cell, reusing all that is on disk. Raises any `IECError`; finished shards stay."""
    scorer = None if cell.metrics == "none" else Scorer.open(cell)  # a missing reference fails before any sampling
    store = Store.open(cell.folder, cell.identity)
    sample_missing(cell, store)
    manifest = store.write_manifest(cell.batches, cell.num_images)
    record = None if scorer is None else scorer.score(cell, store, manifest)
    result = Result(cell, store, manifest, record)
    save_png(cell.folder / "grid.png", grid(result.first_images(64), columns=8, scale=2))
    return result


def finished_result(cell: Cell) -> Result | None:
    """The cell if all that is asked of it is on disk, else None. Computes nothing."""
    if not (cell.folder / "cell.json").is_file():
        return None
    store = Store.open(cell.folder, cell.identity)
    if missing_batches(cell, store):
        return None
    manifest = store.write_manifest(cell.batches, cell.num_images)
    record = None if cell.metrics == "none" else stored_record(cell, manifest)
    return None if record is None and cell.metrics != "none" else Result(cell, store, manifest, record)


def missing_batches(cell: Cell, store: Store) -> list[tuple[int, ...]]:
    """The micro-batches that are not finished, or are damaged."""

    def finished(indices: tuple[int, ...]) -> bool:
        return store.is_finished(indices, *_wanted(cell, indices))

    return [indices for indices in cell.batches if not finished(indices)]


def sample_missing(cell: Cell, store: Store) -> None:
    """Sample and store the missing micro-batches, one shard each."""
    missing = missing_batches(cell, store)
    if not missing:
        return
    log.info("%s: %d of %d shards to sample", cell.slug, len(missing), len(cell.batches))
    text = OmegaConf.to_yaml(cell.config, resolve=True)
    write_atomic(store.folder / "config.yaml", lambda file: file.write(text.encode()))
    write_json(store.folder / "environment.json", environment(cell.device))
    model = cell.model.load(str(cell.device))
    prepared = cell.technique.prepare(model, cell.sampler.timetable, Path(cell.config.paths.artifacts))
    sampler = cell.sampler_of(prepared)
    refresh = None if sampler.refresh is None else sorted(sampler.refresh)
    held = read_json(store.folder / PREPARED)
    if held is not None and held["refresh"] != refresh and len(missing) < len(cell.batches):
        raise StoreError(
            f"{store.folder} has images with the refresh steps {held['refresh']}, and the calibration now finds {refresh}. Use the "
            "artifacts folder that they were made with (paths.artifacts=DIR), or another cell folder (paths.cell=DIR)."
        )
    write_json(store.folder / PREPARED, {"refresh": refresh, "cost": prepared.cost and prepared.cost.as_dict()})
    with stage(f"sampling {cell.config.efficiency.name}", len(missing) * len(cell.sampler.timetable)) as advance:
        for indices in missing:
            count, trace = _wanted(cell, indices)
            samples = sample_batch(model, prepared.network, sampler, cell.seed, indices, trace, advance, cell.config.model.uint8)
            store.write(indices, samples, count, describe_device(cell.device))


def _wanted(cell: Cell, indices: tuple[int, ...]) -> tuple[int, int]:
    """(images, trajectories) of a micro-batch that are wanted."""
    first = indices[0]
    return min(len(indices), cell.num_images - first), max(0, min(len(indices), cell.trace_images - first))


def show(result: Result) -> None:
    """The cell's figures, to the log."""
    manifest = result.manifest
    calls = ", ".join(f"{kind} {count:g}" for kind, count in manifest["calls_per_image"].items())
    log.info("%s", result.cell.folder)
    log.info(
        "  N = %d, network calls per image: %s; %.3f s per image", manifest["num_images"], calls, manifest["seconds_per_image"]
    )
    for score in (result.record or {"scores": {}})["scores"].values():
        log.info("  %s = %.4f [%.4f, %.4f]", score["label"], score["value"], score["low"], score["high"])
