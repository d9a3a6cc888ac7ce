"""One of the processes that share a cell on one machine (`iec.runs.parallel.run_workers`): samples its part, and nothing else."""

import logging
import sys

from iec.io.runtime import entry_point, keep_freed_memory
from iec.runs.cell import Cell
from iec.runs.parallel import worker_config
from iec.runs.runner import missing_batches, sample_batches
from iec.runs.store import Store


def main() -> None:
    """Sample what is missing of the share that the configuration on standard input asks for."""
    config = worker_config()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with entry_point():
        cell = Cell.from_config(config)
        store = Store.open(cell.folder, cell.identity)
        if missing := missing_batches(cell, store, cell.share):
            sample_batches(cell, store, missing)


if __name__ == "__main__":
    keep_freed_memory()
    main()
