"""The pairs of a rule: what was measured of a cell (pays-LABEL.json), beside what the correction changed in a table (table.json).

They belong together where all that the images of the corrected cell depend on is the same, weights included, but for the size of
micro-batches, which moves roundings alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iec.analysis.pays import PREDICTORS
from iec.analysis.rule import Pair
from iec.errors import ConfigError
from iec.io.files import canonical_hash, read_json
from iec.metrics.interval import Interval
from iec.tables.measured import Measured

MEASURE = "Measure them: python -m iec.analysis pays FILE --out DIR."
COMPUTE = "Compute them: python -m iec.tables FILE --run --out DIR."


def outcome_key(identity: Mapping[str, Any]) -> str:
    """A hash of the identity of a cell that measurements and tables share."""
    return canonical_hash({name: value for name, value in identity.items() if name != "batch_size"})


def pairs_in(folders: Sequence[Path], score: str) -> list[Pair]:
    """From all measurements and tables in the folders and below. score: its label, e.g. ``PSNR to ref. (dB)``.
    Raises `ConfigError` where there are none that belong together.
    """
    records = [read_json(path) for folder in folders for path in sorted(folder.rglob("pays-*.json"))]
    of_corrections = [record for record in records if record and record["identity"]["iec"]["correction"]]
    by_images = sorted(of_corrections, key=lambda record: record["num_images"])
    if not (measured := {record["outcome_key"]: record for record in by_images}):  # of one cell that with the most images
        raise ConfigError(f"No measurement (pays-*.json) in {_named(folders)}. {MEASURE}")
    gains: dict[str, Interval] = {}
    for path in [path for folder in folders for path in sorted(folder.rglob("table.json"))]:
        for entry in read_json(path) or []:
            gain, key = _gain(entry, score), outcome_key(entry["identity"])
            if gain is not None and gains.setdefault(key, gain) != gain:
                raise ConfigError(f"{path} and another table give {entry['label']!r} other changes. Name the folder of one.")
    if not gains:
        raise ConfigError(f"No row of a table (table.json) in {_named(folders)} is compared in {score!r}. {COMPUTE}")
    pairs = [_pair(record, gains[key]) for key, record in measured.items() if key in gains]
    if not pairs:
        raise ConfigError(f"The measurements and the tables in {_named(folders)} are of different cells. {MEASURE}")
    return pairs


def _gain(entry: dict[str, Any], score: str) -> Interval | None:
    """The change of the score by the row's correction, above 0 where it is better; None where there is no such change. Of FID the
    paired one of a comparison, where the table has it; else as of independent runs, whose interval is too wide.
    """
    changes = entry.get("changes", {}) | {name: c["change"] for name, c in entry.get("comparisons", {}).items()}
    if score not in changes or entry["identity"]["iec"]["correction"] is None:
        return None
    change = Interval(**changes[score])
    return change if Measured.from_json(entry).higher_is_better[score] else Interval(-change.value, -change.high, -change.low)


def _pair(record: dict[str, Any], gain: Interval) -> Pair:
    predictors = {name: np.array(record["predictors"][name]["images"], np.float64) for name in PREDICTORS}
    return Pair(record["model"], record["label"], gain, predictors)


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
