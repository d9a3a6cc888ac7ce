"""A table and its pictures from an experiment file.

    python -m iec.tables experiments/bundled.yaml                   # assemble what exists, list what is missing
    python -m iec.tables experiments/bundled.yaml --run             # compute what is missing first
    python -m iec.tables experiments/bundled.yaml --run num_images=64 sampler.steps=10

Written to OUTPUT/tables/NAME-HASH: table.md, table.csv, table.json, grid.png, error.png, scores.png.
"""

import argparse
import csv
import io
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from iec.experiments import Experiment
from iec.figures import write_pictures
from iec.files import canonical_hash, write_atomic
from iec.loggers import log_table
from iec.rows import Row, build_rows
from iec.runner import Result, finished_result, run_cell
from iec.runtime import entry_point, keep_freed_memory
from iec.store import write_json

log = logging.getLogger(__name__)
WIDTH_OF_A_FILE = 200


def write_table(rows: list[Row], experiment: Experiment, folder: Path) -> tuple[list[str], list[list[str]]]:
    """table.md, table.csv and table.json; returns the header and the body."""
    header = list(dict.fromkeys(column for row in rows for column in row.cells()))
    body = [[row.cells().get(column, "") for column in header] for row in rows]
    caption = _caption(rows, experiment)
    lines = [f"**{experiment.title}**", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(line) + " |" for line in body]
    markdown = "\n".join([*lines, "", caption, ""])
    write_atomic(folder / "table.md", lambda file: file.write(markdown.encode()))
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["label", *header[1:]], *body])
    write_atomic(folder / "table.csv", lambda file: file.write(text.getvalue().encode()))
    write_json(folder / "table.json", [_json(row) for row in rows])
    return header, body


def _json(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "cell": row.result.cell.slug,
        "identity": row.result.cell.identity,
        "manifest": {k: v for k, v in row.result.manifest.items() if k != "shards"},
        "scores": {name: vars(score) for name, score in row.scores.items() if np.isfinite(score.value)},
        "relative_distance_mean": None if row.errors is None else row.errors.mean(axis=0).tolist(),
        "record": row.result.record,
    }


def _caption(rows: list[Row], experiment: Experiment) -> str:
    cell = rows[0].result.cell
    machines = sorted({m for row in rows for m in row.result.manifest["machines"]})
    return (
        f"Seed {cell.seed}, batch {cell.batch_size}; brackets are 95 % intervals; calls are network calls per image; ref. is "
        f"'{experiment.reference}' from the same noise; sim. = simulated quantization, whose time says nothing about real integer "
        f"kernels. {'; '.join(machines)}."
    )


def show(header: list[str], body: list[list[str]], title: str) -> None:
    """The table in the terminal."""
    table = RichTable(title=title, title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if not column else "right")
    for line in body:
        table.add_row(*line)
    console = Console()
    console.print(table) if console.is_terminal else Console(width=WIDTH_OF_A_FILE).print(table)


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--run", action="store_true", help="compute the rows that are missing")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for every row")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    experiment = Experiment.read(options.experiment, options.overrides)
    cells = experiment.cells()  # every row is checked before any is computed
    results: dict[str, Result] = {}
    for label, cell in cells.items():
        log.info("[%d/%d] %s", len(results) + 1, len(cells), label) if options.run else None
        result = run_cell(cell) if options.run else finished_result(cell)
        if result is None:
            log.info("missing: %s\n    %s", label, experiment.command(label))
        else:
            results[label] = result
    if not results:
        log.info("Nothing to show yet; add --run to compute it.")
        return
    config = next(iter(cells.values())).config
    key = canonical_hash([cells[label].slug for label in results])[:10]
    folder = Path(config.paths.output) / "tables" / f"{experiment.name}-{key}"
    rows = build_rows(results, experiment.reference)
    header, body = write_table(rows, experiment, folder)
    pictures = write_pictures(rows, experiment, folder)
    show(header, body, experiment.title)
    print(_caption(rows, experiment))
    print("\n".join(str(path) for path in [folder / "table.md", *pictures]))
    log_table(config, folder.name, header, body, pictures)


if __name__ == "__main__":
    keep_freed_memory()
    with entry_point():
        main()
