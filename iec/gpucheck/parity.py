"""Part ``parity``: what the device computes against float32 on the CPU, in each arithmetic; for the limits see `arithmetic`."""

from collections.abc import Iterator

from iec.gpucheck.architectures import architecture_lines
from iec.gpucheck.models import ARCHITECTURES
from iec.gpucheck.part import Bench, Line, Part, attempted


def measure(bench: Bench) -> Iterator[Line]:
    for name in ARCHITECTURES:
        yield from attempted(name, lambda name=name: architecture_lines(bench, name))  # type: ignore[misc]


PART = Part("parity", "Does the device compute what the CPU computes?", measure, seconds=150)
