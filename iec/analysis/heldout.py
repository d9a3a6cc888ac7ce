"""A suggestion against the defaults, on seeds that it was not made from."""

from collections.abc import Sequence
from typing import NamedTuple

from iec.analysis.setup import Setup, final_errors
from iec.analysis.suggest import SEED, Suggestion, eligible, relative_change, with_steps
from iec.errors import ConfigError
from iec.io.markdown import markdown_table
from iec.metrics.interval import Interval
from iec.sampling.ddim import Sampler

PAPER = 0.5
"""The paper's lambda."""


class Line(NamedTuple):
    """A way to spend calls. corrections: of an image. error: mean relative distance to the full-precision image. change: the
    suggestion's error less this one's, relative to this one's, paired: negative where the suggestion is better.
    """

    label: str
    steps: tuple[int, ...]
    corrections: int
    error: Interval
    change: Interval


def ends(steps: Sequence[int], count: int) -> tuple[int, ...]:
    """The paper's "first and last" rule for ``count`` corrections: the first ceil(count / 2) and the last floor(count / 2)."""
    return tuple(steps) if count >= len(steps) else (*steps[: (count + 1) // 2], *steps[len(steps) - count // 2 :])


def require_held_out(seed: int, calibration_seed: int) -> None:
    """Raises `ConfigError` where images would be tested on that something was chosen by."""
    if seed == calibration_seed:
        raise ConfigError(f"seed={seed} is the seed that the choice was made from; test it on another.")


def held_out(setup: Setup, suggestion: Suggestion, seed: int, indices: Sequence[int], calibration_seed: int = SEED) -> list[Line]:
    """The suggestion, no correction, and the paper's lambda: at as many calls on the first and the last steps, and at all steps.

    With no step suggested the suggestion is no correction. Raises `ConfigError` if the seed is that of the calibration images.
    """
    require_held_out(seed, calibration_seed)
    steps, chosen = eligible(setup.sampler), suggestion.steps
    ways: dict[str, tuple[tuple[int, ...], float]] = {"suggestion": (tuple(sorted(chosen)), suggestion.lam), "none": ((), PAPER)}
    if 0 < len(chosen) < len(steps):
        ways["first and last, as many calls"] = (ends(steps, len(chosen)), PAPER)
    ways["all steps"] = (steps, PAPER)
    samplers: list[Sampler] = [with_steps(setup.sampler, *way) for way in ways.values()]
    errors = final_errors(setup, samplers, seed, indices)
    return [
        Line(label, where, len(where), Interval.of_mean(error), relative_change(error, errors[0]))
        for (label, (where, _)), error in zip(ways.items(), errors, strict=True)
    ]


def markdown(lines: Sequence[Line]) -> str:
    """A table of the lines."""
    body = []
    for line in lines:
        value, low, high = (f"{100 * v:+.2f}" for v in line.change)
        change = "" if line is lines[0] else f"{value} [{low}, {high}]"
        body.append([line.label, str(line.corrections), str(line.error), change])
    return markdown_table(["", "corrections", "final error", "suggestion against it (%)"], body)
