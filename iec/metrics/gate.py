"""An acceptance gate: bounds that scores have to keep, and what they have to be scores of.

    --gate "fid<=12.3" --gate "efficientnet_lite0_deep/fid<=40"       # of the protocol, and of one beside it
    --gate experiments/gates/bundled.yaml                             # or a file; one of the project's from every folder

    protocol: efficientnet_lite0          # the keys before bounds are optional
    reference: fashion_mnist_train        # as --reference names it
    num: 128                              # images
    extractor_hash: c71ca17a91c3          # as in the record, or the first digits of it; of the protocol, not of those beside it
    reference_hash: 344a84004b93
    bounds:
      fid: [62, 78]                       # low and high, both allowed; null: no bound on this side
      is: [11, null]

A gate passes if every value is inside its bounds; intervals are shown, and do not count. So MLPerf's inference rules accept Stable
Diffusion XL by FID in [23.01085758, 23.95007626] and CLIP score in [31.68631873, 31.81331801] of 5,000 images. The protocol
and the reference are taken from the gate where the command line leaves them open; what contradicts it, or is not scored, is refused
before anything is computed.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iec.errors import ConfigError
from iec.io.paths import user_path
from iec.io.resources import gate_file
from iec.io.yaml import read_yaml
from iec.metrics.interval import Interval

STATED = ("protocol", "reference", "num", "extractor_hash", "reference_hash")
INLINE = re.compile(r"\s*([\w/]+)\s*(<=|>=)\s*([^\s<>=]+)\s*")
WAY_OUT = "Give [low, high] with low <= high, null for one of them."
LEAST_DIGITS = 8
"""Of a hash."""
HASH = f"{LEAST_DIGITS} digits or more, in quotes"


@dataclass(frozen=True)
class Bound:
    """low <= score <= high. score: a name, of a protocol beside the own one as PROTOCOL/NAME. Raises `ConfigError` for bounds that
    are no numbers, that nothing can keep, or that everything keeps.
    """

    score: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (self.low, self.high))
        if not numbers or not self.low <= self.high or (math.isinf(self.low) and math.isinf(self.high)):
            raise ConfigError(f"--gate: {self.score}: [{self.low}, {self.high}] are no bounds. {WAY_OUT}")

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"{self.score} <= {self.high:.10g}"
        if math.isinf(self.high):
            return f"{self.score} >= {self.low:.10g}"
        return f"{self.score} in [{self.low:.10g}, {self.high:.10g}]"


@dataclass(frozen=True)
class Verdict:
    """A bound, and the score that it was asked of."""

    bound: Bound
    score: Interval

    @property
    def passed(self) -> bool:
        return self.bound.low <= self.score.value <= self.bound.high

    def as_json(self) -> dict[str, Any]:
        """Plain values; None for an open side or an interval that is not there."""
        ends = {"at_least": self.bound.low, "at_most": self.bound.high}
        values = {**ends, "value": self.score.value, "low": self.score.low, "high": self.score.high}
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        return {"bound": str(self.bound), "score": self.bound.score, **finite, "passed": self.passed}


@dataclass(frozen=True)
class Gate:
    """bounds: one at least. stated: what the scores have to be of, by the words of `STATED`."""

    bounds: tuple[Bound, ...]
    stated: Mapping[str, Any]

    @classmethod
    def read(cls, words: Sequence[str]) -> "Gate":
        """All that the words ask for: bounds, and files of them. Raises `ConfigError`."""
        gates = [_inline(word) if "<=" in word or ">=" in word else _file(word) for word in words]
        stated: dict[str, Any] = {}
        for gate in gates:
            stated |= _agreed(stated, gate.stated, "another --gate")
        return cls(tuple(bound for gate in gates for bound in gate.bounds), stated)

    def settings(self, **given: Any) -> dict[str, Any]:
        """The command line's values, in place of None what the gate states. Raises `ConfigError` where they contradict it."""
        known = {name: value for name, value in given.items() if value is not None}
        return given | _agreed(known, {name: value for name, value in self.stated.items() if name in given}, "the command line")

    def require(self, scores: Mapping[str, Iterable[str]], n: int, hashes: Mapping[str, str]) -> None:
        """To be called before anything is computed. scores: protocol -> names that will be there, the own protocol first. n: of
        images. hashes: of the own protocol, by the words of `STATED`. Raises `ConfigError` for a bound of another score, and for
        other hashes or another number of images than those stated.
        """
        self.require_number(n)
        for name, actual in hashes.items():
            if not actual.startswith(stated := self.stated.get(name, "")):
                raise ConfigError(
                    f"--gate states {name} {stated}, this is {actual[:12]}: its bounds are about other scores. Use what it states, "
                    "or bounds for this one."
                )
        own = next(iter(scores))
        there = {f"{protocol}/{name}" for protocol, names in scores.items() for name in names}
        for bound in self.bounds:
            if _place(bound.score, own) not in there:
                offered = ", ".join(sorted(name.removeprefix(f"{own}/") for name in there))
                raise ConfigError(
                    f"--gate: {bound}: this score is not computed; there will be {offered}. Ask for it with --metrics or --beside, "
                    "or leave this bound out."
                )

    def judge(self, scores: Mapping[str, Mapping[str, Interval]]) -> list[Verdict]:
        """A verdict for each bound. scores: protocol -> name -> score, as for `require`."""
        own = next(iter(scores))
        places = {f"{protocol}/{name}": score for protocol, named in scores.items() for name, score in named.items()}
        return [Verdict(bound, places[_place(bound.score, own)]) for bound in self.bounds]

    def require_number(self, n: int) -> None:
        """Raises `ConfigError` for another number of images than the gate is about."""
        if n != (expected := self.stated.get("num", n)):
            raise ConfigError(
                f"--gate is about {expected} images, these are {n}. Give it as many: --num {expected} takes the first of more, and "
                f"a cell that has fewer gets them by its own command with num_images={expected}."
            )


def _place(score: str, own: str) -> str:
    return score if "/" in score else f"{own}/{score}"


def _agreed(known: Mapping[str, Any], stated: Mapping[str, Any], who: str) -> dict[str, Any]:
    for name, value in stated.items():
        if known.get(name, value) != value:
            raise ConfigError(f"--gate states {name} {value}, {who} {known[name]}. Give the same to both, or to one of them.")
    return {**known, **stated}


def _inline(word: str) -> Gate:
    match = INLINE.fullmatch(word)
    try:
        value = float(match[3]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise ConfigError(f"--gate {word!r} is no bound. Write NAME<=NUMBER or NAME>=NUMBER, as 'fid<=12.3', or name a file.")
    return Gate((Bound(match[1], high=value) if match[2] == "<=" else Bound(match[1], low=value),), {})


def _file(word: str) -> Gate:
    path = gate_file(user_path(word))
    if not path.is_file():
        raise ConfigError(f"--gate {word}: there is no such file, and it is no bound as 'fid<=12.3'.")
    entry = read_yaml(path)
    if not isinstance(entry, dict) or not isinstance(entry.get("bounds"), dict) or not entry["bounds"]:
        raise ConfigError(f"{path} has no bounds. Write  bounds: {{fid: [null, 12.3]}}")
    if unknown := entry.keys() - {*STATED, "bounds"}:
        raise ConfigError(f"{path}: unknown keys {sorted(map(str, unknown))}; choose from {', '.join((*STATED, 'bounds'))}.")
    stated = {name: value for name, value in entry.items() if name != "bounds"}
    for name, value in stated.items():
        _require_kind(f"{path}: {name}", value, "a whole number" if name == "num" else HASH if name.endswith("_hash") else "a name")
    return Gate(tuple(_bound(str(name), ends) for name, ends in entry["bounds"].items()), stated)


def _require_kind(place: str, value: Any, expected: str) -> None:
    number = type(value) is int and expected == "a whole number"
    text = isinstance(value, str) and expected != "a whole number" and (expected != HASH or len(value) >= LEAST_DIGITS)
    if not (number or text):
        raise ConfigError(f"{place}: {value!r}; give {expected}.")


def _bound(name: str, ends: Any) -> Bound:
    if not isinstance(ends, list) or len(ends) != 2:
        raise ConfigError(f"--gate: {name}: {ends!r} are no bounds. {WAY_OUT}")
    low, high = ends
    return Bound(name, -math.inf if low is None else low, math.inf if high is None else high)
