"""Work spread over processes of this machine, whose messages come back to the process that started them.

They are forked from a server that has imported the libraries once, so that the second set of them starts at once, and all share
the libraries' memory. Processes for CUDA are new ones: importing a library may ask the driver for its devices, and what is forked
after that cannot use them.
"""

import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from iec.errors import IECError

log = logging.getLogger(__name__)
Send = Callable[[Any], None]
Work = Callable[[Any, Send], None]
"""(part, send): computes its part, and sends whatever its starter shall receive. A function of a module, as it is found by name."""
LOG, VALUE, ERROR, DONE = range(4)
"""Kinds of messages."""
KEPT = "What is finished is kept; the same command goes on from there."


class WorkerError(IECError):
    """One of several processes failed, or was killed."""


def run_workers(
    work: Work, parts: Mapping[str, Any], receive: Callable[[Any], None], *, forked: bool = True, preload: Iterable[str] = ()
) -> None:
    """Call ``work`` for each part in a process of its own, and ``receive`` for each value they send, until all have ended well.

    parts: name of the process -> what it computes. What it logs is logged here with its name before it. forked: from the server of
    processes, which imports the modules ``preload`` when it starts, and lives as long as this process; so the first call decides.
    When one process fails the others are killed, as they are when this one is interrupted or dies. Raises `WorkerError`.
    """
    context: Any = get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload([*preload])
    workers: dict[Connection, BaseProcess] = {}
    try:
        for name, part in parts.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, part, theirs, dict(os.environ)), name=name)
            process.start()
            theirs.close()
            workers[ours] = process
        running = dict(workers)
        while running:
            for pipe in wait([*running]):
                assert isinstance(pipe, Connection)
                kind, value = _message(pipe, running[pipe])
                if kind == VALUE:
                    receive(value)
                elif kind == LOG:
                    log.log(value[0], "[%s] %s", running[pipe].name, value[1])
                elif kind == DONE:
                    del running[pipe]
                else:
                    raise WorkerError(f"{running[pipe].name} failed: {value}\n{KEPT}")
    finally:
        for pipe, process in workers.items():
            process.kill()  # what is on disk is complete or absent
            process.join()
            pipe.close()


def _message(pipe: Connection, process: BaseProcess) -> tuple[int, Any]:
    """The next one. Raises `WorkerError` if the process has ended without a last word."""
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise WorkerError(f"{process.name} {how}. {KEPT} If memory ran out, use fewer processes (processes=1).") from error


def _serve(work: Work, part: Any, pipe: Connection, environment: dict[str, str]) -> None:
    """In the process: signals for its starter do not reach it, and it ends when its starter does."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    lock = threading.Lock()

    def send(kind: int, value: Any = None) -> None:
        with lock:
            try:
                pipe.send((kind, value))
            except OSError:  # the starter is gone
                os._exit(1)

    threading.Thread(target=_end_with_starter, args=(pipe,), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Handler(send)], force=True)
    sys.stdout = sys.stderr = _Lines()
    try:
        work(part, lambda value: send(VALUE, value))
    except IECError as error:
        send(ERROR, f"{type(error).__name__}: {error}")
    except Exception as error:
        log.error("%s", traceback.format_exc())
        send(ERROR, f"{type(error).__name__}: {error}")
    else:
        send(DONE)


def _end_with_starter(pipe: Connection) -> None:
    with suppress(EOFError, OSError):
        pipe.recv()  # nothing is ever sent this way: it returns when the other end is closed
    os._exit(1)


class _Handler(logging.Handler):
    """Log records go to the starter as texts."""

    def __init__(self, send: Callable[[int, Any], None]) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send(LOG, (record.levelno, self.format(record)))


class _Lines(io.TextIOBase):
    """What is printed is logged, a line at a time; it is no terminal."""

    rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            log.info("%s", line)
        return len(text)
