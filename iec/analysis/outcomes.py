"""The pairs of a rule: what was measured of a cell (pays-LABEL.json), beside what the correction changed in a table (table.json).

They belong together where all that the images of the corrected cell depend on is the same, weights and calibration included, but
for what moves roundings alone: the size of micro-batches, and whether a quantized network runs in simulation or on integers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from iec.analysis.pays import PREDICTORS
from iec.analysis.rule import Pair
from iec.efficiency.added_errors import ErrorRounding
from iec.errors import ConfigError
from iec.io.files import canonical_hash, read_json
from iec.metrics.interval import Interval
from iec.tables.measured import Measured, changes_in

MEASURE = "Measure them: python -m iec.analysis pays FILE --out DIR."
AGAIN = "Write it again, or leave its folder out."
COMPUTE = "Compute them: python -m iec.tables FILE --run --out DIR."


def outcome_key(identity: Mapping[str, Any]) -> str:
    """A hash of the identity of a cell that measurements and tables share."""
    return canonical_hash(without_roundings(identity))


def without_roundings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a cell without what moves roundings alone. The size of micro-batches is kept where it does more: where a
    correction is measured on the whole batch (``iec.norm=batch``), and with ``error_rounding``, whose levels span one.
    """
    correction, efficiency = identity["iec"]["correction"], identity["efficiency"]
    by_batch = (correction or {}).get("norm") == "batch" or efficiency.get("technique") == ErrorRounding.__qualname__
    kept = {name: value for name, value in identity.items() if by_batch or name != "batch_size"}
    return kept | {"efficiency": {name: value for name, value in efficiency.items() if name != "kernels"}}


def pairs_in(folders: Sequence[Path], score: str) -> list[Pair]:
    """From all measurements and tables in the folders and below. score: its label, e.g. ``PSNR to ref. (dB)``.
    Raises `ConfigError` where there are none that belong together.
    """
    measured, gains = _measured(folders), _gains(folders, score)
    if not measured:
        raise ConfigError(f"No measurement (pays-*.json) in {_named(folders)}. {MEASURE}")
    if not gains:
        raise ConfigError(f"No row of a table (table.json) in {_named(folders)} is compared in {score!r}. {COMPUTE}")
    pairs = [_pair(record, gains[key]) for key, record in measured.items() if key in gains]
    if not pairs:
        raise ConfigError(f"The measurements and the tables in {_named(folders)} are of different cells. {MEASURE}")
    return pairs


def _measured(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Outcome key -> measurement of a correction; of one cell the one with the most images."""
    found: dict[str, dict[str, Any]] = {}
    for path, record in _files(folders, "pays-*.json"):
        with _of_now(path):
            key, images = record["outcome_key"], record["num_images"]
            if record["identity"]["iec"]["correction"] and (key not in found or images >= found[key]["num_images"]):
                found[key] = record
    return found


def _gains(folders: Sequence[Path], score: str) -> dict[str, Interval]:
    """Outcome key -> `_gain` of the row. Raises `ConfigError` where two tables disagree."""
    found: dict[str, Interval] = {}
    for path, entries in _files(folders, "table.json"):
        for entry in entries:
            with _of_now(path):
                gain, key = _gain(entry, score), outcome_key(entry["identity"])
            if gain is not None and found.setdefault(key, gain) != gain:
                raise ConfigError(f"{path} and another table give {entry['label']!r} other changes. Name the folder of one.")
    return found


def _files(folders: Sequence[Path], pattern: str) -> Iterator[tuple[Path, Any]]:
    """(path, value) of the JSON files of this name in the folders and below. Raises `ConfigError` for a damaged one."""
    for path in [path for folder in folders for path in sorted(folder.rglob(pattern))]:
        value = read_json(path)
        if value is None:
            raise ConfigError(f"{path} is damaged. {AGAIN}")
        yield path, value


@contextmanager
def _of_now(path: Path) -> Iterator[None]:
    """Raises `ConfigError` where the block finds other keys in a file than this version writes."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is of another version ({error!r}). {AGAIN}") from error


def _gain(entry: dict[str, Any], score: str) -> Interval | None:
    """The change of the score by the row's correction (`changes_in`), above 0 where it is better; None where there is none."""
    change = changes_in(entry).get(score)
    if change is None or entry["identity"]["iec"]["correction"] is None:
        return None
    return change if Measured.from_json(entry).higher_is_better[score] else Interval(-change.value, -change.high, -change.low)


def _pair(record: dict[str, Any], gain: Interval) -> Pair:
    predictors = {name: np.array(record["predictors"][name]["images"], np.float64) for name in PREDICTORS}
    return Pair(record["model"], record["label"], gain, predictors)


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
