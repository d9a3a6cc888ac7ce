"""The parts one after another, each in a process of its own: what one breaks, or where one hangs, the others do not notice."""

import faulthandler
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iec.gpucheck.part import FAILED, LAST_LINES, Bench, Line, Part, Size, last_lines
from iec.gpucheck.results import BROKEN, FINISHED, STOPPED, PartResult, Results
from iec.io.workers import Send, WorkerError, run_workers

GRACE = 10.0
"""Seconds after its budget at which a part that hangs in a line is ended."""
PATIENCE = {"cpu": 10.0}
"""What budgets are multiplied by: a rehearsal takes what is left of a machine at work, and nobody waits for it."""
HANG = "hang.txt"
PRELOAD = ("iec.gpucheck.catalog", "diffusers.models.unets.unet_2d")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _End:
    """How a part ended, from its process."""

    state: str
    error: str = ""


def run_parts(
    parts: Sequence[Part],
    results: Results,
    device: torch.device,
    size: Size,
    write: Callable[[Results], None],
    order: Sequence[str],
    again: bool = False,
) -> Results:
    """Measure the parts that ``results`` has not (``again``: all), and hand the results to ``write`` after each.

    order: of the names of all parts.
    """
    due = [part for part in parts if again or not results.is_finished(part.name)]
    for part in parts:
        if part not in due:
            log.info("%s: kept, it is finished", part.name)
    for k, part in enumerate(due):
        left = sum(longest(p, device) for p in due[k:])
        log.info(
            "[%d/%d] %s: %s (at most %.0f s; all that is left: at most %.0f s)",
            k + 1,
            len(due),
            part.name,
            part.question,
            longest(part, device),
            left,
        )
        result = run_part(part, device, size, results.machine.version)
        log.info("%s %s: %s, %.1f s", part.name, result.state, counted(result.lines), result.seconds)
        if result.error:
            log.info("%s", result.error)
        results = results.including(result, order)
        write(results)
    return results


def run_part(part: Part, device: torch.device, size: Size, version: str) -> PartResult:
    """Measure one part. No exception of its own comes out."""
    lines: list[Line] = []
    ends: list[_End] = []

    def receive(value: Line | _End) -> None:
        if isinstance(value, _End):
            ends.append(value)
        else:
            lines.append(value)
            log.info("  %s", described(value))

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        task = (part, Bench(device, size, Path(folder)))
        try:
            run_workers(_measure, {part.name: task}, receive, forked=device.type == "cpu", preload=PRELOAD)
        except WorkerError as error:
            ends.append(_End(BROKEN, _how_it_broke(error, Path(folder))))
    end = ends[0]
    return PartResult(part.name, part.question, end.state, tuple(lines), time.monotonic() - began, version, end.error)


def _measure(task: tuple[Part, Bench], send: Send) -> None:
    """In the process: sends each line, and how the part ended."""
    part, bench = task
    with quiet(), (bench.folder / HANG).open("w") as file:
        faulthandler.dump_traceback_later(longest(part, bench.device), exit=True, file=file)
        try:
            send(_measured(part, bench, send))
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block what is measured logs warnings alone: the lines are the progress."""
    ours = logging.getLogger("iec")
    before = ours.level
    ours.setLevel(logging.WARNING)
    try:
        yield
    finally:
        ours.setLevel(before)


def _measured(part: Part, bench: Bench, send: Callable[[Any], None]) -> _End:
    began, budget = time.monotonic(), budget_of(part, bench.device)
    try:
        for line in part.measure(bench):
            send(line)
            if time.monotonic() - began > budget:
                return _End(STOPPED, f"stopped after its budget of {budget:g} s")
    except Exception as error:  # reported; the other parts have processes of their own
        return _End(BROKEN, last_lines(error))
    return _End(FINISHED)


def budget_of(part: Part, device: torch.device) -> float:
    """Seconds after which it stops between lines."""
    return part.seconds * PATIENCE.get(device.type, 1.0)


def longest(part: Part, device: torch.device) -> float:
    """Seconds after which it is ended."""
    return budget_of(part, device) + GRACE


def _how_it_broke(error: WorkerError, folder: Path) -> str:
    """Without the way out, which is another command's. With the place where it hung, if it did."""
    how = str(error).split(". ")[0]
    hung = (folder / HANG).read_text(encoding="utf-8", errors="replace") if (folder / HANG).is_file() else ""
    when, *threads = re.split(r"\n(?=Thread |Current thread )", hung.strip())  # the main one is the last
    return "\n".join([how, when, *"".join(threads[-1:]).split("\n")[:LAST_LINES]]).strip()


def described(line: Line) -> str:
    """A line, as a terminal shows it."""
    text = f"{line.verdict:<7} {line.what}"
    if line.value is not None:
        text += f" {line.value:.4g}"
    if line.unit:
        text += f" {line.unit}"
    if line.limit is not None:
        text += f" (limit {line.limit:.3g})"
    return text + (("\n" if line.verdict == FAILED else ": ") + line.remark if line.remark else "")


def counted(lines: Sequence[Line]) -> str:
    """E.g. ``12 ok, 1 over``."""
    verdicts = [line.verdict for line in lines]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)) or "no line"
