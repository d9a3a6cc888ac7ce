"""The search for a set of steps whose objective is not additive: annealing, then descent. No network is known here."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

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
WINDOW = 3
"""How far a small move goes."""


@dataclass(frozen=True)
class Choice:
    """Where calls are spent: the steps that refresh, those that are corrected, and the lambda of all corrections."""

    refresh: frozenset[int]
    corrected: frozenset[int] = frozenset()
    lam: float = 0.5

    @property
    def key(self) -> str:
        """Equal for choices that make equal images."""
        parts = [" ".join(str(i) for i in sorted(steps)) for steps in (self.refresh, self.corrected)]
        return " | ".join([*parts, *([repr(self.lam)] if self.corrected else [])])

    def first_difference(self, other: "Choice", steps: int) -> int:
        """The first step that the two make differently; T = ``steps`` if none."""
        different = self.refresh ^ other.refresh | self.corrected ^ other.corrected
        if self.lam != other.lam:
            different |= self.corrected | other.corrected
        return min(different, default=steps)


@dataclass(frozen=True)
class Space:
    """The choices at equal cost, and the moves between them.

    steps: T. split: the number of refreshes and that of corrections may change, their sum may not. correctable: the steps that may
    be corrected. on_refresh: those of them only that refresh. lambdas: to choose from, in order.
    """

    steps: int
    split: bool = False
    correctable: frozenset[int] = frozenset()
    on_refresh: bool = True
    lambdas: tuple[float, ...] = (0.5,)

    def holds(self, choice: Choice) -> bool:
        """Whether it can be run."""
        steps = choice.refresh | choice.corrected
        return (
            0 in choice.refresh
            and all(0 <= i < self.steps for i in steps)
            and choice.corrected <= self._open(choice.refresh)
            and choice.lam in self.lambdas
        )

    def _open(self, refresh: frozenset[int]) -> frozenset[int]:
        """The steps that may be corrected with these refreshes."""
        return self.correctable & refresh if self.on_refresh else self.correctable

    def neighbour(self, choice: Choice, rng: random.Random) -> Choice:
        """One random move away; now and then two."""
        for _ in range(1 if rng.random() < 0.9 else 2):
            choice = self._move(choice, rng)
        return choice

    def _move(self, choice: Choice, rng: random.Random) -> Choice:
        """One move, of a kind that there is; the same choice where a hundred tries find none."""
        kinds = [(self._moved_refresh, len(choice.refresh) - 1), (self._moved_correction, len(choice.corrected))]
        if self.split:
            kinds.append((self._exchanged, (len(choice.refresh) + len(choice.corrected)) // 3))
        if choice.corrected and len(self.lambdas) > 1:
            kinds.append((self._other_lambda, 1))
        moves, weights = zip(*kinds, strict=True)
        if not any(weights):
            return choice
        for _ in range(100):
            moved = rng.choices(moves, weights)[0](choice, rng)
            if moved is not None and self.holds(moved):
                return moved
        return choice

    def _moved_refresh(self, choice: Choice, rng: random.Random) -> Choice | None:
        old = rng.choice(sorted(choice.refresh - {0}))
        near = rng.random() < 0.7
        new = old + rng.choice((-1, 1)) * rng.randint(1, WINDOW) if near else rng.randrange(1, self.steps)
        return self._shifted(choice, old, new)

    def _shifted(self, choice: Choice, old: int, new: int) -> Choice | None:
        """The refresh of step ``old`` at ``new``, with its correction."""
        if new in choice.refresh or not 0 < new < self.steps:
            return None
        corrected = choice.corrected
        if self.on_refresh and old in corrected:
            corrected = corrected - {old} | {new}
        return replace(choice, refresh=choice.refresh - {old} | {new}, corrected=corrected)

    def _moved_correction(self, choice: Choice, rng: random.Random) -> Choice | None:
        if not (free := self._open(choice.refresh) - choice.corrected):
            return None
        old, new = rng.choice(sorted(choice.corrected)), rng.choice(sorted(free))
        return replace(choice, corrected=choice.corrected - {old} | {new})

    def _exchanged(self, choice: Choice, rng: random.Random) -> Choice | None:
        """A refresh for a correction, or a correction for a refresh."""
        if choice.corrected and rng.random() < 0.5:
            new = rng.randrange(1, self.steps)
            if new in choice.refresh:
                return None
            corrected = choice.corrected - {rng.choice(sorted(choice.corrected))}
            return replace(choice, refresh=choice.refresh | {new}, corrected=corrected)
        spare = choice.refresh - {0} - (choice.corrected if self.on_refresh else frozenset())
        if not spare:
            return None
        refresh = choice.refresh - {rng.choice(sorted(spare))}
        if not (free := self._open(refresh) - choice.corrected):
            return None
        return replace(choice, refresh=refresh, corrected=choice.corrected | {rng.choice(sorted(free))})

    def _other_lambda(self, choice: Choice, rng: random.Random) -> Choice | None:
        return replace(choice, lam=rng.choice([lam for lam in self.lambdas if lam != choice.lam]))

    def near(self, choice: Choice) -> Iterator[Choice]:
        """All small moves: each refresh by at most `WINDOW` steps, each correction to the next free steps, each next lambda. A step
        changes its kind in `neighbour` alone.
        """
        for old in sorted(choice.refresh - {0}):
            for distance in range(1, WINDOW + 1):
                for new in (old - distance, old + distance):
                    if (moved := self._shifted(choice, old, new)) is not None and self.holds(moved):
                        yield moved
        free = sorted(self._open(choice.refresh) - choice.corrected)
        for old in sorted(choice.corrected):
            below, above = [i for i in free if i < old], [i for i in free if i > old]
            for new in (*below[-1:], *above[:1]):
                yield replace(choice, corrected=choice.corrected - {old} | {new})
        if choice.corrected:
            at = self.lambdas.index(choice.lam)
            for k in (at - 1, at + 1):
                if 0 <= k < len(self.lambdas):
                    yield replace(choice, lam=self.lambdas[k])


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
