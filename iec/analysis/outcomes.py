"""The pairs of a rule: what was measured of a cell (pays-LABEL.json), beside what the correction changed in a table (table.json).

Both hold the name of the corrected cell, which ends in a hash of all that its images depend on, weights included. So a measurement
meets the outcome of its own cell or none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iec.analysis.pays import PREDICTORS
from iec.analysis.rule import Pair
from iec.errors import ConfigError
from iec.io.files import read_json
from iec.metrics.interval import Interval
from iec.tables.measured import Measured

MEASURE = "Measure them: python -m iec.analysis pays FILE --out DIR."
COMPUTE = "Compute them: python -m iec.tables FILE --run --out DIR."


def pairs_in(folders: Sequence[Path], score: str) -> list[Pair]:
    """From all measurements and tables in the folders and below. score: its label, e.g. ``PSNR to ref. (dB)``.
    Raises `ConfigError` where there are none that belong together.
    """
    records = [read_json(path) for folder in folders for path in sorted(folder.rglob("pays-*.json"))]
    if not (measured := {record["cell"]: record for record in records if record}):
        raise ConfigError(f"No measurement (pays-*.json) in {_named(folders)}. {MEASURE}")
    entries = {
        entry["cell"]: entry for folder in folders for path in sorted(folder.rglob("table.json")) for entry in read_json(path)
    }
    gains = {cell: gain for cell, entry in entries.items() if (gain := _gain(entry, score)) is not None}
    if not gains:
        raise ConfigError(f"No row of a table (table.json) in {_named(folders)} is compared in {score!r}. {COMPUTE}")
    pairs = [_pair(record, gains[cell]) for cell, record in measured.items() if cell in gains]
    if not pairs:
        raise ConfigError(f"The measurements and the tables in {_named(folders)} are of different cells. {MEASURE}")
    return pairs


def _gain(entry: dict[str, Any], score: str) -> Interval | None:
    """The change of the score by the row's correction, above 0 where it is better; None where there is no such change. Of FID the
    paired one of a comparison, where the table has it; else as of independent runs, whose interval is too wide.
    """
    changes = entry.get("changes", {}) | {name: c["change"] for name, c in entry.get("comparisons", {}).items()}
    if score not in changes:
        return None
    change = Interval(**changes[score])
    return change if Measured.from_json(entry).higher_is_better[score] else Interval(-change.value, -change.high, -change.low)


def _pair(record: dict[str, Any], gain: Interval) -> Pair:
    predictors = {name: np.array(record["predictors"][name]["images"], np.float64) for name in PREDICTORS}
    return Pair(record["model"], record["label"], gain, predictors)


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
