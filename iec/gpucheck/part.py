"""A part of the check: one question, and the lines that answer it.

A part is one file beside this one, with a generator ``measure(bench)`` that yields each line as soon as it is measured, and a
``PART`` that `iec.gpucheck.catalog` lists. It runs in a process of its own, which ends if it hangs.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Size = Literal["toy", "full"]
"""toy: tiny networks, seconds on a CPU. full: the paper's networks, for a GPU."""
OK, OVER, FAILED, NOTE, SKIPPED = "ok", "over", "failed", "note", "skipped"
BAD = frozenset({OVER, FAILED})
"""Verdicts that make a part fail."""
LAST_LINES = 6


@dataclass(frozen=True)
class Line:
    """One measurement.

    what: unique within its part. verdict: ``ok`` or ``over`` the limit, ``failed`` (an exception in place of a value), ``note`` (a
    value that has no limit), ``skipped``. value, limit: in ``unit``, where there is one. remark: a reason, names, a traceback.
    """

    what: str
    verdict: str
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    remark: str = ""

    @classmethod
    def at_most(cls, what: str, value: float, limit: float, unit: str = "", remark: str = "") -> "Line":
        """``ok`` if value <= limit, else ``over``; a NaN is ``over``."""
        return cls(what, OK if value <= limit else OVER, float(value), float(limit), unit, remark)

    @classmethod
    def note(cls, what: str, value: float | None = None, unit: str = "", remark: str = "") -> "Line":
        return cls(what, NOTE, None if value is None else float(value), None, unit, remark)

    @classmethod
    def skipped(cls, what: str, reason: str) -> "Line":
        return cls(what, SKIPPED, remark=reason)

    @classmethod
    def failed(cls, what: str, error: BaseException) -> "Line":
        return cls(what, FAILED, remark=last_lines(error))


@dataclass(frozen=True)
class Bench:
    """What a part measures on. folder: an empty one of its own for all that it writes, removed afterwards."""

    device: torch.device
    size: Size
    folder: Path

    @property
    def toy(self) -> bool:
        return self.size == "toy"


Measure = Callable[[Bench], Iterable[Line]]


@dataclass(frozen=True)
class Part:
    """name: a word. question: in a sentence. measure: a function of a module, as another process finds it by name. seconds: its
    budget: no further line is measured after it, and soon after it (`iec.gpucheck.run.GRACE`) a line that hangs is ended.
    """

    name: str
    question: str
    measure: Measure
    seconds: float


def attempted(what: str, measure: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """The lines of ``measure``; an exception becomes the line ``failed`` of the name ``what``, and the part goes on."""
    try:
        yield from measure()
    except Exception as error:  # whatever it is, it is reported, and the other lines are worth having
        yield Line.failed(what, error)


def last_lines(error: BaseException) -> str:
    """Of its traceback, as many as a table holds."""
    lines = [line for entry in traceback.format_exception(error) for line in entry.rstrip().split("\n")]
    return "\n".join(lines[-LAST_LINES:])
