"""Compute a cell: prepare the network, sample what is missing, score what is there."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from omegaconf import OmegaConf

from iec.efficiency.cost import Cost
from iec.io.cores import intra_op_threads
from iec.io.environment import Environment
from iec.io.files import write_json, write_text
from iec.io.images import grid, save_png
from iec.io.locks import exclusive
from iec.io.progress import stage_once_begun
from iec.io.records import read_record
from iec.metrics.record import Record
from iec.metrics.references.floors import floor
from iec.metrics.scores import Score
from iec.runs.batches import micro_batches
from iec.runs.cell import Cell
from iec.runs.failures import MORE_MEMORY, failure_recorded, forget_failure, memory_errors
from iec.runs.parallel import UNSPLIT, Batch
from iec.runs.records import PREPARED, Manifest, PreparedRecord
from iec.runs.sampling import missing_batches, sample_batches
from iec.runs.scoring import Scorer, stored_records
from iec.runs.store import Store
from iec.runs.worker import sample_in_processes

log = logging.getLogger(__name__)
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Result:
    """A finished cell: its manifest (images, calls, seconds) and the records of its scores: that of its protocol (none with
    metrics=none), then those of the protocols beside it.
    """

    cell: Cell
    store: Store
    manifest: Manifest
    records: tuple[Record, ...] = ()

    @property
    def record(self) -> Record | None:
        """Of the cell's protocol."""
        return self.records[0] if self.records else None

    @cached_property
    def _prepared(self) -> PreparedRecord | None:
        return read_record(self.cell.folder / PREPARED, PreparedRecord)

    @property
    def cost(self) -> Cost | None:
        """Of the network's calls; None where the technique does not tell."""
        return None if self._prepared is None else self._prepared.cost

    @property
    def calibration_calls(self) -> int | None:
        """Network calls before the sampling, of the technique and the corrector; None where they are not known."""
        return None if self._prepared is None else self._prepared.calibration_calls

    @property
    def scores(self) -> tuple[Score, ...]:
        """Those of one name side by side, in the order of the first record that has it."""
        scores = [score for record in self.records for score in record.scores.values()]
        names = list(dict.fromkeys(score.name for score in scores))
        return tuple(sorted(scores, key=lambda score: names.index(score.name)))

    @property
    def lacking(self) -> tuple[str, ...]:
        """Protocols asked for beside the cell's that have no record."""
        asked = () if self.cell.metrics is None else self.cell.metrics.protocols
        return tuple(name for name in asked if name not in {record.protocol for record in self.records})

    @property
    def floors(self) -> dict[str, float]:
        """Label of a score -> what as many real images score, where it is known."""
        reference = self.cell.card.reference
        known = {s.label: floor(reference, r.protocol, s.name, s.n) for r in self.records for s in r.scores.values()}
        return {label: value for label, value in known.items() if value is not None}

    @property
    def environment(self) -> Environment | None:
        """Of the process that sampled last; None if it is not recorded."""
        return read_record(self.cell.folder / ENVIRONMENT, Environment)

    def shards(self) -> Iterator[np.ndarray]:
        """uint8 [B, H, W, C], a shard at a time."""
        return self.store.read_images(self.cell.batches, self.cell.num_images)

    def first_images(self, count: int) -> np.ndarray:
        """The images 0 .. count - 1 (or all, if fewer), uint8 [n, H, W, C]."""
        count = min(count, self.cell.num_images)
        return np.concatenate(list(self.store.read_images(micro_batches(count, self.cell.batch_size), count)))

    def states(self) -> np.ndarray:
        """float32 [T + 1, trace_images, C, H, W]."""
        return self.store.read_states(self.cell.batches, self.cell.trace_images)


def run_cell(cell: Cell) -> Result | None:
    """Finish a cell, or the shard of it that is asked for, reusing all that is on disk.

    None while micro-batches of other shards are missing: the task that finds all of them finished scores the cell.
    Raises any `IECError`; finished shards stay, and failed.json says what went wrong.
    """
    share = cell.share
    cell.paths.require_usable()
    store = Store.open(cell.folder, cell.identity)
    with failure_recorded(cell.folder), intra_op_threads(cell.split.threads):
        scorer = None if cell.metrics is None else Scorer.open(cell)  # a missing reference fails before any sampling
        if missing := missing_batches(cell, store, share):
            log.info("%s: %d of %d micro-batches to sample", cell.slug, len(missing), len(share.take(cell.batches)))
            _write_circumstances(cell, store)
            _sample(cell, store, missing)
        if missing := missing_batches(cell, store):
            shards = share.missing_shards(cell.batches, missing)
            log.info("%s: shard %d of %d is finished, shards %s are not", cell.slug, share.index, share.count, shards)
            log.info("  %d of %d micro-batches are missing; the task that ends last scores", len(missing), len(cell.batches))
            return None
        return _finish(cell, store, scorer)


def _sample(cell: Cell, store: Store, batches: list[Batch]) -> None:
    """Here, or in as many processes as are of use; one bar for all of them."""
    steps = len(cell.sampler.timetable)
    places = cell.split.places(len(batches), cell.batch_size * steps)
    with stage_once_begun(f"sampling {cell.efficiency}", len(batches) * steps) as advance:
        if len(places) > 1:
            sample_in_processes(cell.config, batches, places, advance)
        else:
            sample_batches(cell, store, batches, advance)


def _write_circumstances(cell: Cell, store: Store) -> None:
    """config.yaml, without how the cell is split into tasks, and environment.json."""
    text = OmegaConf.to_yaml(OmegaConf.merge(cell.config, UNSPLIT), resolve=True)
    write_text(store.folder / "config.yaml", text)
    write_json(store.folder / ENVIRONMENT, asdict(Environment.of(cell.device)))


def _finish(cell: Cell, store: Store, scorer: Scorer | None) -> Result:
    """The manifest, the scores and the picture of a cell whose images are all there. A second task that comes finds them made."""
    with exclusive(cell.folder / "scores.lock", f"scoring {cell.slug}"):
        manifest = store.write_manifest(cell.batches, cell.num_images)
        with memory_errors("scoring", MORE_MEMORY):
            records = () if scorer is None else scorer.score(cell, store, manifest)
        result = Result(cell, store, manifest, records)
        save_png(cell.folder / "grid.png", grid(result.first_images(64), columns=8, scale=2))
    forget_failure(cell.folder)
    return result


def finished_result(cell: Cell) -> Result | None:
    """The cell if its images and the scores of its protocol are on disk, with those of the protocols beside it that are, else None.
    Computes nothing, writes nothing.
    """
    if not (cell.folder / "cell.json").is_file():
        return None
    store = Store.open(cell.folder, cell.identity)
    if missing_batches(cell, store):
        return None
    manifest = store.manifest(cell.batches, cell.num_images)
    if cell.metrics is None:
        return Result(cell, store, manifest)
    records = stored_records(cell, manifest)
    return Result(cell, store, manifest, records) if records else None
