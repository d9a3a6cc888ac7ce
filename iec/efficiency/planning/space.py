"""Where a budget of calls can be spent: the choices at equal cost, and the moves from one to another."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
