"""What a person sees while waiting: a bar with the stage and an ETA, or a line now and then where there is no terminal."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[], None]
"""Called once for each finished unit of a stage."""

QUIET_SECONDS = 20.0
log = logging.getLogger(__name__)


@contextmanager
def stage(name: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """A stage of ``total`` units: yields the function that counts one.

    On a terminal a bar; elsewhere a log line at most every 20 seconds and one at the end.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(name, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)


def _lines(name: str, total: int) -> Advance:
    began = last = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if done == total or now - last > QUIET_SECONDS:
            last = now
            left = (total - done) * (now - began) / done
            log.info("%s: %d/%d, %.0f s, ETA %.0f s", name, done, total, now - began, left)

    return advance
