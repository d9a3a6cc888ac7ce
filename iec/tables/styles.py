"""How a row is drawn. It follows from the overrides of all rows, so a row looks the same in every plot of an experiment, whichever
other rows are there: the hue is the technique (of rows of one technique the corrector or the sampler), the shade its setting, the
marker the corrector or the sampler, and a hollow marker a row that is corrected.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_hex, to_rgb

HUES = ("#4c4c4c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#6a3d9a", "#17a2b8", "#920000", "#7a7a00")
GREY = "#b8b8b8"
"""Of rows whose place in a plot is not what it seems."""
MARKERS = "os^DvP*X<>pdh8"
DARKEST, LIGHTEST = -0.3, 0.45
"""Of the shades of a hue: the part of black (negative) or white that is mixed in."""
UNCORRECTED = {"iec": "none", "corrector": "none"}
Settings = tuple[tuple[str, str], ...]
"""(key, value) of some overrides, sorted."""


@dataclass(frozen=True)
class Style:
    """marker: matplotlib's. filled: whether the row has no corrector."""

    colour: str
    marker: str
    filled: bool

    @property
    def line(self) -> str:
        """Of its curves."""
        return "-" if self.filled else "--"

    @property
    def face(self) -> str:
        """Of its markers."""
        return self.colour if self.filled else "white"


@dataclass(frozen=True)
class Parts:
    """What the overrides of a row say. technique: its model and efficiency; setting: of the technique; corrector: IEC and what
    corrects without a call; rest: all else.
    """

    technique: Settings
    setting: Settings
    corrector: Settings
    rest: Settings

    @classmethod
    def of(cls, overrides: Iterable[str]) -> "Parts":
        """Of two values of a key the last counts, as for Hydra."""
        values = UNCORRECTED | dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
        groups: dict[str, dict[str, str]] = {"technique": {}, "setting": {}, "corrector": {}, "rest": {}}
        for key, value in values.items():
            own = key.startswith(("model.", "efficiency."))
            name = "technique" if key in ("model", "efficiency") else "setting" if own else _group(key)
            groups[name][key] = value
        return cls(**{name: tuple(sorted(group.items())) for name, group in groups.items()})

    @property
    def corrected(self) -> bool:
        values = dict(self.corrector)
        return any(values[group] != "none" for group in UNCORRECTED)


def _group(key: str) -> str:
    return "corrector" if key.partition(".")[0] in UNCORRECTED else "rest"


def bases(rows: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Corrected row -> the row that differs by having no corrector, where there is one. rows: label -> overrides."""
    parts = {label: Parts.of(overrides) for label, overrides in rows.items()}
    plain = {(p.technique, p.setting, p.rest): label for label, p in reversed(parts.items()) if not p.corrected}
    keys = {label: (p.technique, p.setting, p.rest) for label, p in parts.items() if p.corrected}
    return {label: plain[key] for label, key in keys.items() if key in plain}


def styles(rows: Mapping[str, Sequence[str]]) -> dict[str, Style]:
    """label -> style. rows: label -> overrides. A row and the first correction of it differ by the filling of the marker alone."""
    parts = {label: Parts.of(overrides) for label, overrides in rows.items()}
    first = next((p.corrector for p in parts.values() if p.corrected), None)
    others = {label: p.corrector if p.corrected and p.corrector != first else () for label, p in parts.items()}
    several = len({p.technique for p in parts.values()}) > 1
    kinds = {label: p.technique if several else (p.corrector, p.rest) for label, p in parts.items()}
    hues = _ranks(kinds.values())
    markers = _markers(parts, others)
    result = {}
    for label, p in parts.items():
        shades = _ranks((q.setting, q.rest, others[other]) for other, q in parts.items() if kinds[other] == kinds[label])
        colour = _shade(HUES[hues[kinds[label]] % len(HUES)], shades[p.setting, p.rest, others[label]], len(shades))
        result[label] = Style(colour, MARKERS[markers[label] % len(MARKERS)], not p.corrected)
    return result


def _markers(parts: Mapping[str, Parts], others: Mapping[str, Settings]) -> dict[str, int]:
    """By the sampler and the corrector, the usual first; by the setting of its technique where all rows have the same."""
    counts = Counter((p.rest, others[label]) for label, p in parts.items())
    if len(counts) > 1:
        ranks = _ranks(key for key, _ in counts.most_common())
        return {label: ranks[p.rest, others[label]] for label, p in parts.items()}
    settings = {p.technique: _ranks(q.setting for q in parts.values() if q.technique == p.technique) for p in parts.values()}
    return {label: settings[p.technique][p.setting] for label, p in parts.items()}


def _ranks(keys: Iterable[Hashable]) -> dict[Hashable, int]:
    """Different keys in the order of their first mention."""
    return {key: k for k, key in enumerate(dict.fromkeys(keys))}


def _shade(hue: str, rank: int, count: int) -> str:
    """From dark to light; the hue itself where it is alone."""
    share = np.linspace(DARKEST, LIGHTEST, count)[rank] if count > 1 else 0.0
    return to_hex((1 - abs(share)) * np.array(to_rgb(hue)) + max(share, 0.0))
