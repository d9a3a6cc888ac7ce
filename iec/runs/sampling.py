"""The micro-batches of a cell that are missing, and their sampling in this process."""

from collections.abc import Sequence
from dataclasses import asdict

from iec.correctors.prepare import fitted
from iec.efficiency.compiled import require_compiler
from iec.efficiency.technique import Prepared
from iec.errors import StoreError
from iec.io.cores import intra_op_threads
from iec.io.environment import describe_device
from iec.io.files import write_json
from iec.io.float32 import without_tf32
from iec.io.progress import Advance
from iec.io.records import read_record
from iec.models import Model
from iec.runs.batches import sample_batch
from iec.runs.cell import Cell
from iec.runs.compiling import compiled_network
from iec.runs.failures import MORE_MEMORY, memory_errors
from iec.runs.parallel import WHOLE, Batch, Share
from iec.runs.records import PREPARED, PreparedRecord
from iec.runs.store import Store
from iec.sampling.solver import Solver


def missing_batches(cell: Cell, store: Store, share: Share = WHOLE) -> list[Batch]:
    """The micro-batches of the share that are not finished, or are damaged."""

    def finished(indices: Batch) -> bool:
        return store.is_finished(indices, *_requested(cell, indices))

    return [indices for indices in share.take(cell.batches) if not finished(indices)]


@without_tf32()
def sample_batches(cell: Cell, store: Store, batches: Sequence[Batch], advance: Advance) -> None:
    """Sample and store micro-batches of the cell, one shard each; ``advance`` is called for each step. Float32 is float32: torch's
    default takes TF32, of 10 bits, for convolutions on a GPU, and calibrations would be of another network than on a CPU.

    Raises `StoreError`, `MemoryLimitError`, `NonFiniteError`; `DeviceError` where nothing can be compiled and it has to be.
    """
    if cell.compile:
        require_compiler(cell.device)
    with memory_errors(f"preparing {cell.efficiency}", MORE_MEMORY):
        model = cell.model.load(str(cell.device))
        prepared, sampler = prepare(cell, model)
        if prepared.own_weights:
            model.unet.to("meta")  # where nothing is stored; its dtype and configuration stay known
    _record_prepared(cell, store, prepared, sampler)
    smaller = f"Try batch_size={cell.batch_size // 2} (a cell of its own)" if cell.batch_size > 1 else "Try model.dtype=bfloat16"
    with memory_errors(f"sampling micro-batches of {cell.batch_size}", f"{smaller}, or a device with more memory."):
        network = compiled_network(cell, model, prepared.network, sampler) if cell.compile else prepared.network
        for indices in batches:
            count, trace = _requested(cell, indices)
            trace = max(trace, store.kept(indices)[1])  # nothing that was stored is lost to a request of less
            samples = sample_batch(model, network, sampler, cell.seed, indices, trace, advance, cell.uint8)
            store.write(indices, samples, count, describe_device(cell.device))


@without_tf32()
def prepare(cell: Cell, model: Model) -> tuple[Prepared, Solver]:
    """The technique's network, and the sampler with its refresh steps and its fitted corrector. Calibrations come from the
    artifacts folder; each is locked while it is made.
    """
    with intra_op_threads(cell.split.threads):
        prepared = cell.technique.prepare(model, cell.sampler.timetable, cell.artifacts)
        sampler, technique = cell.sampler_of(prepared), cell.technique_identity
        return prepared, fitted(sampler, model, prepared.network, technique=technique, artifacts=cell.artifacts)


def calibration_calls(cell: Cell, prepared: Prepared, sampler: Solver) -> int | None:
    """Of the technique and of the cell's corrector; sampler: with its refresh steps."""
    of_technique = prepared.calibration_calls
    return None if of_technique is None else of_technique + cell.sampler.corrector.calibration_calls(sampler)


def _record_prepared(cell: Cell, store: Store, prepared: Prepared, sampler: Solver) -> None:
    """Write prepared.json. Raises `StoreError` if images are there that were made with other refresh steps."""
    refresh = None if sampler.refresh is None else sorted(sampler.refresh)
    stored = read_record(store.folder / PREPARED, PreparedRecord)
    if stored is not None and stored.refresh != refresh and len(missing_batches(cell, store)) < len(cell.batches):
        raise StoreError(
            f"{store.folder} has images with the refresh steps {stored.refresh}, and the calibration now finds {refresh}. Use the "
            "artifacts folder that they were made with (paths.artifacts=DIR), or another cell folder (paths.cell=DIR)."
        )
    record = PreparedRecord(refresh, prepared.cost, calibration_calls(cell, prepared, sampler))
    write_json(store.folder / PREPARED, asdict(record))


def _requested(cell: Cell, indices: Batch) -> tuple[int, int]:
    """(images, trajectories) of a micro-batch that are asked for."""
    first = indices[0]
    return min(len(indices), cell.num_images - first), max(0, min(len(indices), cell.trace_images - first))
