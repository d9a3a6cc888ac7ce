"""The rows of tables in experiments/results, as scripts/account.py counts them: by their correction, each cell once."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iec.analysis.outcomes import without_roundings
from iec.metrics.interval import Interval
from iec.models.cards import card, card_names
from iec.tables.measured import changes_in

FID, PSNR = "FID (EffNet-Lite0)", "PSNR to ref. (dB)"
SIGNIFICANT = 0.05
TECHNIQUES = {"FullPrecision": "full precision", "ptq": "quantized", "deepcache": "cached", "cachequant": "quantized and cached"}
KINDS = ("IEC", "IEC, renorm", "IEC but the last step", "IEC, lambda 0.1", "Heun")
"""The corrections that are counted, in the order of the page."""


@dataclass(frozen=True)
class Counted:
    """A row of a table. kind: its correction; empty for none. key: what it has in common with the row it is compared with. tested:
    whether its change of FID is paired, image by image. significant: the scores whose change has p < `SIGNIFICANT`, adjusted by
    Holm's method for the rows of its table that are compared with the same row.
    """

    table: str
    label: str
    model: str
    weights: str | None
    technique: str
    steps: int
    seed: int
    kind: str
    key: str
    images: int
    calls: dict[str, float]
    scores: dict[str, Interval]
    changes: dict[str, Interval]
    tested: bool
    significant: frozenset[str]

    @classmethod
    def of(cls, table: str, entry: dict[str, Any]) -> "Counted":
        identity, manifest = entry["identity"], entry["manifest"]
        own = ("iec", "corrector", "batch_size")
        common = {name: value for name, value in without_roundings(identity).items() if name not in own}
        return cls(
            table=table,
            label=entry["label"],
            model=identity["model"]["name"],
            weights=identity["model"]["weights"],
            technique=technique_of(identity["efficiency"]),
            steps=len(identity["sampler"]["pairs"]),
            seed=identity["seed"],
            kind=kind_of(entry),
            key=json.dumps(common, sort_keys=True),
            images=manifest["num_images"],
            calls=manifest["calls_per_image"],
            scores={name: Interval(**ends) for name, ends in entry["scores"].items()},
            changes=changes_in(entry),
            tested=FID in entry.get("comparisons", {}),
            significant=frozenset(name for name, of in entry.get("comparisons", {}).items() if of["adjusted"] < SIGNIFICANT),
        )


def technique_of(efficiency: dict[str, Any]) -> str:
    """One of `TECHNIQUES`, or ``error added``."""
    return TECHNIQUES.get(efficiency["technique"], "error added")


def kind_of(entry: dict[str, Any]) -> str:
    """One of `KINDS`, empty for a row without anything, or ``other``."""
    identity, calls = entry["identity"], entry["manifest"]["calls_per_image"]
    iec, correction = identity["iec"], identity["iec"]["correction"]
    if identity.get("corrector") or iec["epsilon_scale"] != 1:
        return "other"
    if correction is None:
        return ""
    if correction["evaluate_at"] == "s":
        return "Heun"
    if correction.get("cache_from", "last") != "last" or calls.get("cached_correction"):
        return "other"
    steps = identity["sampler"]["pairs"]
    most, least = calls["full"], calls["full"]
    if calls["cached"]:
        least -= sum(t == s for t, s in steps)  # a refresh at a step that changes nothing is not corrected
    but_last = not calls["cached"] and calls["correction"] == calls["full"] - 1 and len(steps) - 1 not in iec["corrected_steps"]
    if correction["iterations"] != 1 or not (but_last or least <= calls["correction"] <= most):
        return "other"
    changes = {
        "IEC, renorm": bool(correction.get("renorm")),
        "IEC but the last step": but_last,
        "IEC, lambda 0.1": correction["lambdas"] == [0.1],
    }
    if sum(changes.values()) > 1 or correction["lambdas"] not in ([0.5], [0.1]):
        return "other"
    return next((name for name, changed in changes.items() if changed), "IEC")


def counted_in(path: Path) -> list[Counted]:
    """All rows of a table.json."""
    return [Counted.of(path.parent.name, entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def read(results: Path) -> tuple[list[Counted], list[str]]:
    """The rows of the packaged weights, and the names of tables that have rows of others."""
    packaged = {name: card(name).packaged for name in card_names()}
    weights = {name: files.sha256 for name, files in packaged.items() if files is not None}
    rows, stale = [], []
    for path in sorted(results.glob("*/table.json")):
        found = counted_in(path)
        current = [row for row in found if weights.get(row.model) == row.weights]
        rows += with_own_references(current)
        if len(current) < len(found):
            stale.append(path.parent.name)
    return rows, stale


def with_own_references(rows: Sequence[Counted]) -> list[Counted]:
    """The rows of a table without distances to a reference of another number of steps. A reference has no distance itself."""
    known = {(row.model, row.steps) for row in rows if PSNR not in row.scores}
    return [
        row if (row.model, row.steps) in known else replace(row, changes={k: v for k, v in row.changes.items() if k != PSNR})
        for row in rows
    ]


def distinct(rows: Iterable[Counted]) -> list[Counted]:
    """Rows of seed 0 with a change by one of `KINDS`, each cell once."""
    found: dict[tuple[str, str], Counted] = {}
    for row in rows:
        if row.kind in KINDS and row.changes and row.seed == 0:
            key = row.key, row.kind
            found[key] = max(found.get(key, row), row, key=lambda row: (row.tested, row.images))
    return list(found.values())
