"""How far a cell is, from what lies on disk; nothing is computed."""

from iec.errors import StoreError
from iec.runs.cell import Cell
from iec.runs.failures import read_failure
from iec.runs.runner import finished_result
from iec.runs.sampling import missing_batches
from iec.runs.store import Store


def progress_of(cell: Cell) -> str:
    """``done``, ``3 of 8 shards``, ``to be scored`` or ``nothing yet``, with the folder; ``failed`` and why, also of a folder that
    cannot be used, so that one row's does not hide the others.
    """
    if (failure := read_failure(cell.folder)) is not None:
        return f"failed on {failure.when}: {failure.reason}; try again: {failure.command}"
    if not (cell.folder / "cell.json").is_file():
        return "nothing yet"
    try:
        missing = len(missing_batches(cell, Store.open(cell.folder, cell.identity)))
        if missing:
            return f"{len(cell.batches) - missing} of {len(cell.batches)} shards in {cell.folder}"
        return f"{'to be scored' if finished_result(cell) is None else 'done'} in {cell.folder}"
    except StoreError as error:
        return f"failed: {error}"
