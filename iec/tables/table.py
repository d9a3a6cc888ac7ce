"""A table and its pictures from an experiment file.

    python -m iec.tables experiments/bundled.yaml                   # assemble what exists, list what is missing
    python -m iec.tables experiments/bundled.yaml --run             # compute what is missing first
    python -m iec.tables experiments/bundled.yaml --run num_images=64 sampler.steps=10
    python -m iec.tables experiments/table1.yaml --scale paper      # the paper's models; small: the bundled one
    python -m iec.tables experiments/*.yaml --status                # how far every row is

Written to OUTPUT/tables/NAME-HASH, or to DIR/NAME with --out DIR: table.md, table.csv, table.tex, table.json, grid.png, error.png,
scores.png, cost.png.
"""

import argparse
import csv
import io
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from iec.errors import ArtifactError, ConfigError, IECError, WeightsError
from iec.io.files import canonical_hash, write_atomic, write_json
from iec.runs.cell import Cell
from iec.runs.runner import Result, finished_result, run_cell
from iec.runs.status import progress_of
from iec.runs.tracking import log_cell
from iec.tables.experiment import EVIDENCE, Experiment
from iec.tables.figures import write_pictures
from iec.tables.rows import Row, build_rows
from iec.tables.tracking import log_table

log = logging.getLogger(__name__)
WIDTH_OF_A_FILE = 200
LACKING: tuple[type[IECError], ...] = (WeightsError, ArtifactError)
"""How a row ends that lacks files of weights or of statistics here: the others can be computed."""
PUBLISHED = ", published"
"""The end of the heading of a column of published values."""


def write_table(
    rows: list[Row], experiment: Experiment, folder: Path, absent: Mapping[str, str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """table.md, table.csv, table.tex and table.json; returns the header and the body.

    Rows that are not computed are listed if a value is published for them. absent: label -> why it is not there, for the caption.
    """
    header, body = table_of(rows, experiment)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["label", *header[1:]], *body])
    contents = {
        "table.md": markdown(header, body, experiment.title, caption_of(rows, experiment) + _absent(experiment, absent or {})),
        "table.tex": latex(header, body, experiment.title),
        "table.csv": text.getvalue(),
    }
    for name, content in contents.items():
        write_atomic(folder / name, lambda file, content=content: file.write(content.encode()))  # type: ignore[misc]
    write_json(folder / "table.json", [_json(row) for row in rows])
    return header, body


def table_of(rows: list[Row], experiment: Experiment) -> tuple[list[str], list[list[str]]]:
    """The header and the body: finished rows and those that a value is published for, in the file's order."""
    made = {row.label: row.cells() for row in rows}
    lines = [{"": label, **_published(experiment, label), **made.get(label, {})} for label in experiment.labels]
    lines = [line for line in lines if len(line) > 1]
    first = ["", *_published_columns(experiment)]
    header = [column for column in dict.fromkeys([*first, *(c for line in lines for c in line)]) if any(column in x for x in lines)]
    body = [[line.get(column, "") for column in header] for line in lines]
    return header, body


def markdown(header: list[str], body: list[list[str]], title: str, caption: str) -> str:
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(line) + " |" for line in body]
    return "\n".join([*lines, "", caption, ""])


def latex(header: list[str], body: list[list[str]], title: str) -> str:
    """A table for the booktabs package."""

    def line(cells: list[str]) -> str:
        return " & ".join(re.sub(r"([&%$#_{}])", r"\\\1", cell) for cell in cells) + r" \\"

    rows = [r"\toprule", line(header), r"\midrule", *map(line, body), r"\bottomrule"]
    ends = r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\end{tabular}"
    return "\n".join([f"% {title}", ends[0], *rows, ends[1], ""])


def _published(experiment: Experiment, label: str) -> dict[str, str]:
    """Columns of what a paper gives, for all rows of an experiment that has any."""
    given = experiment.published.get(label, {})
    return {key: str(given[column]) if column in given else "" for key, column in _published_columns(experiment).items() if given}


def _published_columns(experiment: Experiment) -> dict[str, str]:
    """Heading -> column that values are published for."""
    return {f"{column}{PUBLISHED}": column for values in experiment.published.values() for column in values}


def _json(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "cell": row.result.cell.slug,
        "identity": row.result.cell.identity,
        "manifest": {k: v for k, v in row.result.manifest.as_dict().items() if k != "shards"},
        "scores": {name: vars(score) for name, score in row.scores.items() if np.isfinite(score.value)},
        "relative_distance_mean": None if row.errors is None else row.errors.mean(axis=0).tolist(),
        "record": row.result.record and row.result.record.as_dict(),
    }


def _absent(experiment: Experiment, absent: Mapping[str, str]) -> str:
    """What is missing or failed, with the command that computes it."""
    return "".join(f"\n\nNot there: {label} ({why}): `{experiment.command(label)}`" for label, why in absent.items())


def caption_of(rows: list[Row], experiment: Experiment) -> str:
    """What the rows (one at least) were measured on, and what the columns mean."""
    cell = rows[0].result.cell
    machines = sorted({m for row in rows for m in row.result.manifest.machines})
    references = "' or '".join(label for label in experiment.references if label in {row.label for row in rows})
    paired = f"ref. is '{references}' from the same noise; " if references else ""
    hours = sum(row.result.manifest.seconds for row in rows) / 3600
    models = ", ".join(dict.fromkeys(row.result.cell.card.name for row in rows))
    if experiment.replaced:
        models += f" in place of {', '.join(experiment.replaced)}: look at what IEC changes, not at the values"
    text = (
        f"Measured on {models}. Seed {cell.seed}, batch {cell.batch_size}; brackets are 95 % intervals; calls are network calls "
        f"per image; {paired}sim. = simulated quantization, whose time says "
        f"nothing about real integer kernels. {'; '.join(machines)}; {hours:.1f} h of sampling."
    )
    kinds = {value.evidence for values in experiment.published.values() for value in values.values()}
    legend = "; ".join(f"{'?' if kind == 'unknown' else kind[0]}: {EVIDENCE[kind]}" for kind in EVIDENCE if kind in kinds)
    return f"{text} Published: {experiment.source} ({legend})." if kinds else text


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
    parser.add_argument("given", nargs="+", metavar="FILE|OVERRIDE", help="experiment files, and Hydra overrides for every row")
    parser.add_argument("--run", action="store_true", help="compute the rows that are missing")
    parser.add_argument("--scale", help="of a file that has scales; by default paper where there is a GPU, else small")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the tables, each in a folder named as its file")
    parser.add_argument("--status", action="store_true", help="only say how far each row is")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    files = [Path(text) for text in options.given if "=" not in text]
    overrides = [text for text in options.given if "=" in text]
    experiments = [Experiment.read(path, overrides, options.scale) for path in files]
    for experiment in experiments:
        if not experiment.references:
            raise ConfigError(f"{experiment.name} has no reference row: it is no table. Use  python scripts/analyse.py.")
    checked = [(experiment, *experiment.available(LACKING)) for experiment in experiments]  # every row, before any is computed
    for experiment, cells, missing in checked:
        if options.status:
            print(status(experiment, cells, missing))
        else:
            assemble(experiment, cells, missing, options.run, options.out)


def status(experiment: Experiment, cells: Mapping[str, Cell], missing: Mapping[str, IECError]) -> str:
    """A line for each row: done, how many images are there, failed and why, or what it lacks."""
    states = _states(cells, missing)
    return "\n".join([experiment.title, *(f"  {label}: {states[label]}" for label in experiment.rows)])


def _states(cells: Mapping[str, Cell], missing: Mapping[str, IECError]) -> dict[str, str]:
    lacking = {label: f"cannot run here: {type(e).__name__}: {str(e).splitlines()[0]}" for label, e in missing.items()}
    return {label: progress_of(cell) for label, cell in cells.items()} | lacking


def assemble(
    experiment: Experiment, cells: dict[str, Cell], missing: Mapping[str, IECError], compute: bool, out: Path | None = None
) -> None:
    """The table of what is finished, after computing what is not if asked to. missing: rows that cannot run here. out: see --out.

    A row that fails does not stop the others; if one did, or could not be computed, the last error is raised at the end.
    """
    results: dict[str, Result] = {}
    failure: IECError | None = None
    for text, labels in _by_text(missing).items():
        log.error("cannot run here: %s: %s", ", ".join(labels), text)
        if compute or not cells:
            failure = missing[labels[0]]
    for k, (label, cell) in enumerate(cells.items(), 1):
        log.info("[%d/%d] %s", k, len(cells), label) if compute else None
        try:
            result = run_cell(cell) if compute else finished_result(cell)
            if result is not None:
                results[label] = result
                log_cell(result, experiment.name)
        except IECError as error:
            log.error("failed: %s: %s\n    %s", label, error, experiment.command(label))
            failure = error
            continue
        if result is None:
            log.info("missing: %s\n    %s", label, experiment.command(label))
    if results:
        others = {label: cell for label, cell in cells.items() if label not in results}
        _show(experiment, cells, results, _states(others, missing), out)
    elif failure is None:
        log.info("Nothing to show yet; add --run to compute it.")
    if failure is not None:
        raise failure


def _by_text(errors: Mapping[str, IECError]) -> dict[str, list[str]]:
    """What an error says -> the labels of its rows: rows of one model lack the same files."""
    labels: dict[str, list[str]] = {}
    for label, error in errors.items():
        labels.setdefault(str(error), []).append(label)
    return labels


def _show(
    experiment: Experiment, cells: dict[str, Cell], results: dict[str, Result], absent: Mapping[str, str], out: Path | None
) -> None:
    """Write the table and its pictures, and print it. absent: label -> why it is not there."""
    output = next(iter(cells.values())).paths.output
    key = canonical_hash([cells[label].slug for label in results])[:10]
    folder = out / experiment.name if out else output / "tables" / f"{experiment.name}-{key}"
    rows = build_rows(results, experiment.references)
    header, body = write_table(rows, experiment, folder, absent)
    pictures = write_pictures(rows, experiment, folder)
    show(header, body, experiment.title)
    print(caption_of(rows, experiment))
    print("\n".join(str(path) for path in [folder / "table.md", *pictures]))
    log_table(experiment, cells, header, body, pictures)
