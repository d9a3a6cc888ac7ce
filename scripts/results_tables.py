"""Fill in the tables of docs/results.md, README.md and experiments/results/README.md from experiments/results, or check them.

    python -m scripts.results_tables            # writes the pages
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
from scripts.counted import FID, PSNR, SIGNIFICANT
from scripts.marked import fill

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments/results"
PAGES = (ROOT / "docs/results.md", ROOT / "README.md", RESULTS / "README.md")
SCORES = {FID: ("FID", 0), PSNR: ("PSNR (dB)", 1)}
"""Label in table.json -> heading, decimals."""
SECONDS_A_CALL = {"ddim_fashion_small": 0.007, "ddim_cifar_small": 0.012, "ideal_fashion": 0.0007}
"""Of the whole network for one image in a batch of 32, one core, when the runs were planned."""
SHARE_OF_A_CALL = {"cached": 0.3, "simulated": 2.0, "int8": 0.7}

Entry = Mapping[str, Any]


def table(name: str, results: Path = RESULTS) -> str:
    """name: ``rows TABLE ..: ROW | ..`` or ``runs``. Raises `ArtifactError` for a table or a row that is not there."""
    if name == "runs":
        return runs(results)
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


def runs(results: Path) -> str:
    """A line for each table and model: its steps, images and rows, and the minutes of sampling, planned and measured."""
    body = []
    for path in sorted(results.glob("*/table.json")):
        models: dict[str, list[Entry]] = {}
        for entry in entries(path.parent.name, results):
            models.setdefault(entry["identity"]["model"]["name"], []).append(entry)
        body += [[*titled(path.parent), f"`{model}`", *cost(rows)] for model, rows in models.items()]
    return markdown_table(["table", "what", "model", "T", "N", "rows", "planned (min)", "took (min)"], body)


def titled(folder: Path) -> list[str]:
    """Links to the table and its reading, and the table's title."""
    reading = f", [reading]({folder.name}/reading.md)" if (folder / "reading.md").is_file() else ""
    title, *_ = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    return [f"[{folder.name}]({folder.name}/table.md){reading}", title.strip("*")]


def cost(rows: Sequence[Entry]) -> list[str]:
    """T, N, number of rows, minutes planned and minutes measured: those of sampling, summed over the rows."""
    steps = sorted({len(row["identity"]["sampler"]["pairs"]) for row in rows})
    images = sorted({row["manifest"]["num_images"] for row in rows})
    took = sum(row["manifest"]["num_images"] * row["manifest"]["seconds_per_image"] for row in rows)
    minutes = [f"{seconds / 60:.0f}" if seconds >= 60 else "< 1" for seconds in (sum(map(planned, rows)), took)]
    return [", ".join(map(str, steps)), ", ".join(map(str, images)), str(len(rows)), *minutes]


def planned(entry: Entry) -> float:
    """Seconds of sampling: images x calls x the seconds of a call. Raises `ArtifactError` for a network without such seconds."""
    model = entry["identity"]["model"]["name"]
    if model not in SECONDS_A_CALL:
        raise ArtifactError(
            f"{entry['label']}: nothing was planned for {model}. Add its seconds of a call to SECONDS_A_CALL in {__file__}."
        )
    efficiency, counts = entry["identity"]["efficiency"], entry["manifest"]["calls_per_image"]
    arithmetic = "int8" if efficiency.get("kernels") == "int8" else "simulated"
    share = SHARE_OF_A_CALL[arithmetic] if "weight_bits" in efficiency else 1.0
    cached = counts["cached"] + counts["cached_correction"]
    calls = counts["total"] - cached * (1 - SHARE_OF_A_CALL["cached"])
    return entry["manifest"]["num_images"] * calls * share * SECONDS_A_CALL[model]


if __name__ == "__main__":
    with entry_point():
        fill(__doc__, dict.fromkeys(PAGES, table))
