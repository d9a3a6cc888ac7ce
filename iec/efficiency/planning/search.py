"""The search for a set of steps whose objective is not additive: annealing, then descent. No network is known here."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from iec.efficiency.planning.space import Choice, Space
from iec.errors import ConfigError
from iec.io.files import write_json
from iec.io.records import read_record
from iec.sampling.network import Calls

HOT, COLD = 0.05, 1e-4
"""Temperatures of the annealing, relative to the objective where it starts."""
ANNEALED = 0.6
"""Share of the evaluations left that an annealing proposes; the descent after it has the rest."""
ROUNDS = 20
"""Of both, at most, while there are evaluations left: moves to choices that are known take none."""


@dataclass(frozen=True)
class Evaluated:
    """The values so far, by `Choice.key`, and the calls that they took: the file of `Evaluations`."""

    values: dict[str, float]
    calls: Calls


@dataclass
class Evaluations:
    """Values of an objective, each computed once, and kept in a file: a search that was killed goes through the same choices again,
    and computes only what the file does not have.

    objective: choice -> what is to be small. limit: how many different choices this search may ask for. calls: what the objective
    has spent, all attempts together. path: of the file; None keeps nothing. done: told the number of choices so far.
    """

    objective: Callable[[Choice], float]
    limit: int
    calls: Calls = field(default_factory=Calls)
    path: Path | None = None
    done: Callable[[int], object] = lambda count: None
    values: dict[str, float] = field(default_factory=dict, init=False)
    stored: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        record = None if self.path is None else read_record(self.path, Evaluated)
        if record is not None:
            self.stored = record.values
            for kind in fields(Calls):
                setattr(self.calls, kind.name, getattr(self.calls, kind.name) + getattr(record.calls, kind.name))

    @property
    def left(self) -> int:
        return self.limit - len(self.values)

    def __call__(self, choice: Choice) -> float:
        key = choice.key
        if key not in self.values:
            if key not in self.stored:
                self.stored[key] = self.objective(choice)
                if self.path is not None:
                    write_json(self.path, asdict(Evaluated(self.stored, self.calls)))
            self.values[key] = self.stored[key]
            self.done(len(self.values))
        return self.values[key]


def search(space: Space, starts: Sequence[Choice], evaluate: Evaluations, seed: int) -> Choice:
    """The best choice found: from the best of ``starts`` simulated annealing, then descent from the best so far by small moves, and
    again while there are evaluations left.

    The temperature falls geometrically from `HOT` to `COLD` of the value where the annealing starts, so that the scale of the
    objective does not matter. Deterministic in ``seed`` and the values. Raises `ConfigError` for a start outside of the space, and
    for fewer evaluations than starts.
    """
    if wrong := [choice.key for choice in starts if not space.holds(choice)]:
        raise ConfigError(f"A search cannot start from {wrong}.")
    if evaluate.limit < len(starts):
        raise ConfigError(f"{evaluate.limit} evaluations are fewer than the {len(starts)} schedules that the search starts from.")
    rng = random.Random(seed)
    best = min(starts, key=evaluate)
    for _ in range(ROUNDS):
        if evaluate.left:
            best = _descended(space, _annealed(space, best, evaluate, rng), evaluate, rng)
    return best


def _annealed(space: Space, start: Choice, evaluate: Evaluations, rng: random.Random) -> Choice:
    current = best = start
    scale, moves = evaluate(start), round(ANNEALED * evaluate.left)
    for move in range(moves if scale > 0 else 0):
        temperature = scale * HOT * (COLD / HOT) ** (move / max(1, moves - 1))
        candidate = space.neighbour(current, rng)
        worse = evaluate(candidate) - evaluate(current)
        if worse <= 0 or rng.random() < math.exp(-worse / temperature):
            current = candidate
        best = min(best, current, key=evaluate)
    return best


def _descended(space: Space, best: Choice, evaluate: Evaluations, rng: random.Random) -> Choice:
    """Small moves in random order, each that helps is made, until none does or no evaluation is left."""
    improved = True
    while improved:
        improved = False
        moves = list(space.near(best))
        rng.shuffle(moves)
        for candidate in moves:
            if not evaluate.left and candidate.key not in evaluate.values:
                continue
            if evaluate(candidate) < evaluate(best):
                best, improved = candidate, True
                break
    return best
