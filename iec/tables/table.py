"""A table: its header and body, its caption, and its files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iec.io.files import write_json, write_text
from iec.tables.experiment import Experiment
from iec.tables.formats import comma_separated, latex, markdown, markdown_code, markdown_text
from iec.tables.measured import Measured, measured
from iec.tables.published import EVIDENCE
from iec.tables.rows import CALIBRATION, Row, floor_lines
from iec.tables.styles import bases

PUBLISHED = ", published"
"""The end of the heading of a column of published values."""
COMPARISONS = (
    "Changes are those from the plain row of the technique, image by image from the same noise (of FID by each image's influence "
    "on it, to first order), with 95 % intervals of Student's t; p: two-sided, adjusted for all rows of the technique by Holm's "
    "method."
)


def write_table(
    rows: list[Row], experiment: Experiment, folder: Path, absent: Mapping[str, str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """table.md, table.csv, table.tex and table.json; returns the header and the body, with `floor_lines` at its end.

    Rows that are not computed are listed if a value is published for them. absent: label -> why it is not there, for the caption.
    """
    header, body = table_of(rows, experiment)
    body += [[line.get(column, "") for column in header] for line in floor_lines(rows)]
    again = f"Again: {markdown_code(experiment.again)}" if experiment.again else ""
    caption = "\n\n".join(filter(None, [markdown_text(caption_of(rows, experiment)), again, *_absent(experiment, absent or {})]))
    contents = {
        "table.md": markdown(header, body, experiment.title, caption),
        "table.tex": latex(header, body, experiment.title),
        "table.csv": comma_separated(header, body),
    }
    for name, content in contents.items():
        write_text(folder / name, content)
    write_json(folder / "table.json", [_entry(*pair) for pair in zip(rows, measured(rows, bases(experiment.rows)), strict=True)])
    return header, body


def table_of(rows: list[Row], experiment: Experiment) -> tuple[list[str], list[list[str]]]:
    """The header and the body: finished rows and those that a value is published for, in the file's order."""
    measured = {row.label: row.texts() for row in rows}
    lines = [{"": label, **_published(experiment, label), **measured.get(label, {})} for label in experiment.labels]
    lines = [line for line in lines if len(line) > 1]
    first = ["", *_published_columns(experiment)]
    columns = dict.fromkeys([*first, *(column for line in lines for column in line)])
    nothing = {CALIBRATION: ("", "0")}  # calls: none
    header = [column for column in columns if any(line.get(column, "") not in nothing.get(column, ("",)) for line in lines)]
    body = [[line.get(column, "") for column in header] for line in lines]
    return header, body


def _published(experiment: Experiment, label: str) -> dict[str, str]:
    """Columns of what a paper gives, for all rows of an experiment that has any."""
    given = experiment.published.get(label, {})
    return {key: str(given[column]) if column in given else "" for key, column in _published_columns(experiment).items() if given}


def _published_columns(experiment: Experiment) -> dict[str, str]:
    """Heading -> column that values are published for."""
    return {f"{column}{PUBLISHED}": column for values in experiment.published.values() for column in values}


def _entry(row: Row, drawn: Measured) -> dict[str, Any]:
    """Of table.json."""
    result = row.result
    manifest = {key: value for key, value in result.manifest.as_dict().items() if key != "shards"}
    fixed = {"label": row.label, "cell": result.cell.slug, "identity": result.cell.identity, "manifest": manifest}
    records = [record.as_dict() for record in result.records]
    comparisons = {name: asdict(comparison) for name, comparison in row.comparisons.items()}
    told = {"calibration_calls": result.calibration_calls, "cost_group": row.cost_group, "comparisons": comparisons}
    return {**fixed, **told, "record": records[0] if records else None, "beside": records[1:], **drawn.as_json()}


def _absent(experiment: Experiment, absent: Mapping[str, str]) -> list[str]:
    """A paragraph of Markdown for each row that is missing or failed, with the command that computes it."""
    return [
        f"Not there: {markdown_text(label)} ({markdown_text(why)}): {markdown_code(experiment.portable_command(label))}"
        for label, why in absent.items()
    ]


def caption_of(rows: list[Row], experiment: Experiment) -> str:
    """What the rows (one at least) were measured on, and what the columns mean."""
    sentences = [
        f"Measured on {_models(rows, experiment)}. Seed {_distinct(row.result.cell.seed for row in rows)}, batch "
        f"{_distinct(row.result.cell.batch_size for row in rows)}; brackets are 95 % intervals; calls are network calls per image; "
        f"{_paired(rows, experiment)}sim. = simulated quantization, whose time says nothing about real integer kernels. "
        f"{_machines(rows)}."
    ]
    if any(row.result.calibration_calls for row in rows):
        sentences.append(
            "Calibration calls: those of a row's technique and corrector, images times steps, before the first image; rows may "
            "share them."
        )
    if any(row.cost_group for row in rows):
        sentences.append(f"Rows of one cost group are within 5 % of each other in {experiment.cost}.")
    if any(row.comparisons for row in rows):
        sentences.append(COMPARISONS)
    if floors := floor_lines(rows):
        what = " and ".join(dict.fromkeys(line[""] for line in floors))
        sentences.append(f"{what}: mean scores of as many, the bias of N images alone.")
    sentences += [f"Left out: {', '.join(labels)}: {why}" for why, labels in experiment.left_out.items()]
    kinds = {value.evidence for values in experiment.published.values() for value in values.values()}
    legend = "; ".join(f"{'?' if kind == 'unknown' else kind[0]}: {EVIDENCE[kind]}" for kind in EVIDENCE if kind in kinds)
    sentences += [f"Published: {experiment.source} ({legend})."] if kinds else []
    return " ".join(sentences)


def _models(rows: Sequence[Row], experiment: Experiment) -> str:
    models = _distinct(row.result.cell.card.name for row in rows)
    replaced = ", ".join(experiment.replaced)
    return f"{models} in place of {replaced}: look at what IEC changes, not at the values" if replaced else models


def _paired(rows: Sequence[Row], experiment: Experiment) -> str:
    references = "' or '".join(label for label in experiment.references if label in {row.label for row in rows})
    return f"ref. is '{references}' from the same noise; " if references else ""


def _machines(rows: Sequence[Row]) -> str:
    machines = sorted({machine for row in rows for machine in row.result.manifest.machines})
    hours = sum(row.result.manifest.seconds for row in rows) / 3600
    return f"{'; '.join(machines)}; {hours:.1f} h of sampling"


def _distinct(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
