"""What went wrong with a cell, kept in its folder so that tables can show it, and out-of-memory errors with a way out.

CELL/failed.json   {"reason", "when", "command"} of the last attempt that failed; removed when the cell is finished
"""

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from iec.errors import IECError, StoreError
from iec.io.files import write_json
from iec.io.records import read_record

log = logging.getLogger(__name__)
FAILED = "failed.json"
MORE_MEMORY = "Use a device with more memory, or free this one of other processes; what is finished is kept."
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""In the message of a RuntimeError of CUDA, of torch's CPU allocator, of cuDNN or cuBLAS."""


class MemoryLimitError(IECError):
    """The device has too little free memory for what was tried."""


class SweepError(CompactHydraException):
    """What Hydra is told of a cell that failed: it goes on with the others and prints the message of the first one at the end."""


@dataclass(frozen=True)
class Failure:
    """reason: the error's type and message. when: UTC, ISO 8601. command: what was running; it tries again."""

    reason: str
    when: str
    command: str


def read_failure(folder: Path) -> Failure | None:
    """Of the cell's last attempt; None if it did not fail."""
    return read_record(folder / FAILED, Failure)


def forget_failure(folder: Path) -> None:
    """For a cell that is finished."""
    (folder / FAILED).unlink(missing_ok=True)


@contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """Leave failed.json in ``folder`` if the block raises an error. A kill or Ctrl-C is none."""
    try:
        yield
    except Exception as error:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            write_json(folder / FAILED, asdict(Failure(f"{type(error).__name__}: {error}", when, _command())))
        except StoreError as second:  # the first error is the one to report
            log.warning("note: %s", second)
        raise


def _command() -> str:
    """What is running; in a sweep the command of this cell alone."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return shlex.join(sys.orig_argv)
    hydra = HydraConfig.get()
    folders = [f"--config-dir={source.path}" for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return shlex.join(["python", "-m", "iec", "run", *folders, *hydra.overrides.task])


@contextmanager
def memory_errors(doing: str, way_out: str) -> Iterator[None]:
    """Turn the out-of-memory errors of CUDA, torch's CPU allocator and Python into `MemoryLimitError` that names the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise MemoryLimitError(f"Out of memory while {doing} ({first}). {way_out}") from error


@contextmanager
def sweep_job() -> Iterator[None]:
    """For a cell of a sweep: errors are logged at once and handed to Hydra, which goes on and ends with exit code 1."""
    try:
        yield
    except IECError as error:
        log.error("%s: %s", type(error).__name__, error)
        raise SweepError(f"At least one cell failed, of those that could be finished all are. The first one: {error}") from error
    except Exception:
        log.exception("This cell failed; the sweep goes on.")
        raise
