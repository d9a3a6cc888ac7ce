"""Fill in the tables of docs/results.md and README.md from experiments/results, or check that they are what is written.

    python -m scripts.results_tables            # writes both pages
    python -m scripts.results_tables --check    # exit code 1 where one would change

A table stands between `<!-- rows TABLE .. -->` and `<!-- end -->`. Behind a colon are the rows that it has, separated by ` | `, all
if there are none. Rows of several models, of one table or of several, stand side by side. A row shows its FID and its PSNR to the
reference row, and, where the table compares it with another row, what it changes, with a 95 % interval that is paired, image by
image. A star: p is below 0.05, adjusted by Holm's method for all rows that are compared with the same row.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iec.errors import ArtifactError
from iec.io.markdown import markdown_table
from iec.io.runtime import entry_point
from scripts.marked import fill

ROOT = Path(__file__).parents[1]
PAGES, RESULTS = (ROOT / "docs/results.md", ROOT / "README.md"), ROOT / "experiments/results"
SCORES = {"FID (EffNet-Lite0)": ("FID", 0), "PSNR to ref. (dB)": ("PSNR (dB)", 1)}
"""Label in table.json -> heading, decimals."""
SIGNIFICANT = 0.05

Entry = Mapping[str, Any]


def table(name: str, results: Path = RESULTS) -> str:
    """name: ``rows TABLE ..: ROW | ..``. Raises `ArtifactError` for a table or a row that is not there."""
    tables, _, wanted = " ".join(name.split()).removeprefix("rows ").partition(":")  # it may fill several lines
    found = by_row([entry for of in tables.split() for entry in entries(of, results)])
    labels = [label.strip() for label in wanted.split(" | ")] if wanted.strip() else list(found)
    if unknown := [label for label in labels if label not in found]:
        raise ArtifactError(f"<!-- {name} -->: no row {unknown}. Choose from: {' | '.join(found)}.")
    models = list(dict.fromkeys(model for row in found.values() for model in row))
    ahead = [f"`{model}`: " if len(models) > 1 else "" for model in models]
    header = ["", "calls / image", *(f"{text}{heading}" for text in ahead for heading, _ in SCORES.values())]
    return markdown_table(header, [[label, *line(found[label], models)] for label in labels])


def entries(name: str, results: Path) -> list[Entry]:
    path = results / name / "table.json"
    if not path.is_file():
        raise ArtifactError(f"{path} is not there. Write it: python -m iec.tables experiments/{name}.yaml --run --out {results}")
    return json.loads(path.read_text(encoding="utf-8"))


def by_row(found: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    """Label without its model -> model -> entry."""
    rows: dict[str, dict[str, Entry]] = {}
    for entry in found:
        model = entry["identity"]["model"]["name"]
        rows.setdefault(entry["label"].removeprefix(f"{model}: "), {})[model] = entry
    return rows


def line(row: Mapping[str, Entry], models: Sequence[str]) -> list[str]:
    """Its calls and, for each model, its scores; empty where a model has none."""
    return [calls(next(iter(row.values()))), *(score(row.get(model), label) for model in models for label in SCORES)]


def calls(entry: Entry) -> str:
    """Full + cached + those of corrections."""
    counts = entry["manifest"]["calls_per_image"]
    parts = [counts["full"], counts["cached"], counts["correction"] + counts["cached_correction"]]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return "+".join(f"{part:g}" for part in parts)


def score(entry: Entry | None, label: str) -> str:
    """VALUE [LOW, HIGH] of a row that is compared with none, VALUE, CHANGE [LOW, HIGH] of others."""
    if entry is None or label not in entry["scores"]:
        return ""
    _, decimals = SCORES[label]
    own, comparison = entry["scores"][label], entry.get("comparisons", {}).get(label)
    value = f"{own['value']:.{decimals}f}"
    if comparison is None:
        return f"{value} [{own['low']:.{decimals}f}, {own['high']:.{decimals}f}]"
    low, change, high = (f"{comparison['change'][end]:+.{decimals}f}" for end in ("low", "value", "high"))
    return f"{value}, {change} [{low}, {high}]{'*' if comparison['adjusted'] < SIGNIFICANT else ''}"


if __name__ == "__main__":
    with entry_point():
        fill(__doc__, dict.fromkeys(PAGES, table))
