"""What a person sees while waiting: a bar with the stage and an ETA, or a line now and then where there is no terminal."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[], None]
"""Called once for each finished unit of a stage."""
Report = Callable[[int, int], None]
"""Called with (units done, units in all)."""

QUIET_SECONDS = 20.0
log = logging.getLogger(__name__)


@contextmanager
def stage(name: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """A stage of ``total`` units: yields the function that counts one."""
    done = 0
    with reported(name, console) as report:
        report(0, total)

        def advance() -> None:
            nonlocal done
            done += 1
            report(done, total)

        yield advance


@contextmanager
def stage_once_begun(name: str, total: int) -> Iterator[Advance]:
    """A `stage` that begins with its first unit: whatever has to be prepared before that is not in its ETA, and has its own."""
    with ExitStack() as stack:
        begun: list[Advance] = []

        def advance() -> None:
            if not begun:
                begun.append(stack.enter_context(stage(name, total)))
            begun[0]()

        yield advance


@contextmanager
def reported(name: str, console: Console | None = None) -> Iterator[Report]:
    """A stage whose work counts by itself: yields the function that shows how far it is.

    On a terminal a bar; elsewhere a log line at most every 20 seconds and one at the end.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(name: str) -> Report:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done and (done == total or now - last > QUIET_SECONDS):
            last = now
            left = (total - done) * (now - began) / done
            log.info("%s: %d/%d, %.0f s, ETA %.0f s", name, done, total, now - began, left)

    return report
