"""What the page says of each experiment: read from finished cells; nothing is sampled or scored."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from markupsafe import Markup

from iec.errors import IECError
from iec.report.entries import Entry, entries_of
from iec.report.pictures import Picture, Sprite, plots_of, sprite_of
from iec.report.provenance import Provenance, provenance_of
from iec.report.reading import to_html
from iec.runs.runner import Result, finished_result
from iec.runs.status import progress_of
from iec.tables.experiment import Experiment
from iec.tables.rows import Row, build_rows, floor_lines
from iec.tables.styles import bases
from iec.tables.table import PUBLISHED, caption_of, table_of

log = logging.getLogger(__name__)
ELSEWHERE = "not at this scale"
STARTED = ("to be scored", *"0123456789")
"""How the progress of a row begins that has some images."""
DAMAGED = (IECError, OSError, ValueError, LookupError, TypeError)
"""What a missing, damaged or foreign file of a cell can lead to."""


@dataclass(frozen=True)
class Line:
    """A row of a table. texts: of all columns, or of the label and what is published alone if we have no numbers; why: the reason;
    empty if we have. command: computes it. provenance: where its numbers come from.
    """

    label: str
    texts: list[str]
    why: str
    command: str
    provenance: Provenance

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.why.startswith("failed") or not self.why:
            return self.why.partition(" ")[0]
        progress, found, _ = self.why.partition(" in ")
        return progress if self.why == ELSEWHERE or (found and progress.startswith(STARTED)) else "missing"

    @property
    def missing(self) -> bool:
        """Whether this scale has the row, and its numbers are not there."""
        return bool(self.why) and self.why != ELSEWHERE


@dataclass(frozen=True)
class Section:
    """An experiment. problem: why it could not be assembled. floors: lines of what real images score. families: the sprites of a
    row and of its corrections; alone: of the other rows. entries: the finished rows for the explorer.
    """

    name: str
    title: str
    file: str
    scale: str = ""
    problem: str = ""
    reading: Markup = field(default_factory=Markup)
    header: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    floors: list[list[str]] = field(default_factory=list)
    caption: str = ""
    families: list[list[Sprite]] = field(default_factory=list)
    alone: list[Sprite] = field(default_factory=list)
    plots: list[Picture] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    protocols: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        return sum(not line.why for line in self.lines)

    @property
    def missing(self) -> int:
        """Rows of this scale that are not there."""
        return sum(line.missing for line in self.lines)


def read_section(path: Path, overrides: Sequence[str], scale: str | None, models: Sequence[str] = ()) -> Section:
    """The section of an experiment file; arguments as of `Experiment.read`. What goes wrong is said in it."""
    name, file = path.stem, f"{path.parent.name}/{path.name}"
    log.info("%s", path)
    try:
        experiment = Experiment.read(path, overrides, scale, models)
    except IECError as error:
        log.error("%s: %s", path, error)
        return Section(name, name, file, problem=str(error))
    results, absent = _results(experiment)
    section = Section(name, experiment.title, file, reading=_reading(path), scale=experiment.scale, replaced=experiment.replaced)
    try:
        rows = build_rows(results, experiment.references, experiment.paired)
        return _with_rows(section, experiment, rows, absent)
    except DAMAGED as error:
        log.error("%s: %s", path, _said(error))
        why = "the rows cannot be put into one table, see above"
        section = replace(section, problem=str(error) if isinstance(error, IECError) else _said(error))
        return _with_rows(section, experiment, [], {**dict.fromkeys(results, why), **absent})


def _results(experiment: Experiment) -> tuple[dict[str, Result], dict[str, str]]:
    """The finished rows, and label -> why it is not there of the others that this scale has."""
    cells, errors = experiment.available(DAMAGED)
    results, absent = {}, {label: _said(error) for label, error in errors.items()}
    for label, cell in cells.items():
        try:
            result = finished_result(cell)
            if result is None:
                absent[label] = progress_of(cell)
            else:
                results[label] = result
        except DAMAGED as error:
            absent[label] = _said(error)
    return results, absent


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _reading(path: Path) -> Markup:
    """``results/NAME/reading.md`` beside the experiment file, if there is one; bytes that are not UTF-8 are marked."""
    reading = path.parent / "results" / path.stem / "reading.md"
    return to_html(reading.read_text(encoding="utf-8", errors="replace")) if reading.is_file() else Markup()


def _with_rows(section: Section, experiment: Experiment, rows: list[Row], absent: dict[str, str]) -> Section:
    header, lines = _lines(section.file, experiment, rows, absent)
    sprites = {row.label: sprite_of(row) for row in rows}
    families: dict[str, list[Sprite]] = {}
    for label, base in bases(experiment.rows).items():
        if {label, base} <= sprites.keys():
            families.setdefault(base, [sprites[base]]).append(sprites[label])
    related = {sprite.label for family in families.values() for sprite in family}
    return replace(
        section,
        header=header,
        lines=lines,
        floors=[[line.get(column, "") for column in header] for line in floor_lines(rows)],
        caption=caption_of(rows, experiment) if rows else f"Published: {experiment.source}." if experiment.source else "",
        families=list(families.values()),
        alone=[sprite for label, sprite in sprites.items() if label not in related],
        plots=plots_of(rows, experiment) if rows else [],
        entries=entries_of(section.name, rows, experiment),
        protocols=tuple(sorted({record.protocol for row in rows for record in row.result.records})),
    )


def _lines(file: str, experiment: Experiment, rows: list[Row], absent: dict[str, str]) -> tuple[list[str], list[Line]]:
    """Every row of the file: its label, what is published, our scores beside it, and then what they cost."""
    header, body = table_of(rows, experiment)
    scores = list(dict.fromkeys(name for row in rows for name in row.scores))
    first = ["", *(column for column in header if column.endswith(PUBLISHED))]
    columns = list(dict.fromkeys([*first, *scores, *header]))
    known = {line[0]: dict(zip(header, line, strict=True)) for line in body}
    results = {row.label: row.result for row in rows}
    lines = []
    for label in experiment.labels:
        values = {"": label, **known.get(label, {})}
        if label in results:
            texts, provenance = [values.get(column, "") for column in columns], provenance_of(results[label])
            lines.append(Line(label, texts, "", experiment.command(label), provenance))
            continue
        texts = [values.get(column, "") for column in first]
        why = absent.get(label, ELSEWHERE)
        command = experiment.command(label) if label in absent else f"python -m iec.tables {file} --run --scale paper"
        lines.append(Line(label, texts, why, command, []))
    return columns, lines
