"""What was measured, as it lies on disk: report.json."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from iec.gpucheck.machine import Machine
from iec.gpucheck.part import BAD, Line
from iec.io.files import read_json, write_json
from iec.io.records import ShapeError, parse

FINISHED, STOPPED, BROKEN = "finished", "stopped", "broken"
REPORT, PAGE = "report.json", "report.md"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartResult:
    """state: ``finished``; ``stopped`` by its budget, with the lines before; ``broken`` by an exception, a kill or a hang, which
    ``error`` tells. seconds: wall-clock, with the start of its process. version: of the sources, see `Machine`.
    """

    name: str
    question: str
    state: str
    lines: tuple[Line, ...]
    seconds: float
    version: str
    error: str = ""

    @property
    def failed(self) -> bool:
        return self.state == BROKEN or any(line.verdict in BAD for line in self.lines)


@dataclass(frozen=True)
class Results:
    """Of all parts measured so far on one device at one size. date: of the last, ISO."""

    machine: Machine
    size: str
    date: str
    parts: tuple[PartResult, ...] = ()

    def of(self, name: str) -> PartResult | None:
        return next((part for part in self.parts if part.name == name), None)

    def is_finished(self, name: str) -> bool:
        """Whether the part need not be measured again: it is finished, by the same sources."""
        part = self.of(name)
        return part is not None and part.state == FINISHED and part.version == self.machine.version

    def including(self, part: PartResult, order: Sequence[str]) -> "Results":
        """With the part in place of an older one, in this order of names."""
        parts = [*(old for old in self.parts if old.name != part.name), part]
        return replace(self, parts=tuple(sorted(parts, key=lambda p: order.index(p.name) if p.name in order else len(order))))

    def write(self, folder: Path) -> None:
        write_json(folder / REPORT, asdict(self))


def stored(folder: Path, machine: Machine, size: str, date: str) -> Results:
    """What the folder holds of this device and size, by these versions and settings, or nothing yet. Any other
    report is set aside.
    """
    nothing = Results(machine, size, date)
    try:
        there = parse(Results, read_json(folder / REPORT))
    except ShapeError:  # none, or of an older version
        return nothing
    if (there.machine.device, there.size) != (machine.device, size):
        set_aside(folder, there)
        return nothing
    if _circumstances(there.machine) != _circumstances(machine):
        log.info("The report in %s is of other versions or settings.", folder)
        set_aside(folder, there, there.date)
        return nothing
    return replace(nothing, parts=there.parts)


def _circumstances(machine: Machine) -> tuple[dict[str, str], ...]:
    return machine.environment.packages, machine.facts, machine.flags


def set_aside(folder: Path, results: Results, date: str = "") -> None:
    """report.json and report.md get the device and the size into their names, and a date that is given."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{results.machine.device} {results.size} {date}".lower()).strip("-")
    for name in (REPORT, PAGE):
        path = folder / name
        if path.is_file():
            path.replace(path.with_stem(f"{path.stem}-{words}"))
    log.info("The report of %s, %s size, is set aside: report-%s.json", results.machine.device, results.size, words)
