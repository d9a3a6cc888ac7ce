"""A finished row as the explorer of the page needs it: what it is, what it costs, and its scores by what they compare with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from iec.io.files import canonical_hash
from iec.runs.cell import Cell
from iec.tables.experiment import COSTS, Experiment
from iec.tables.measured import simulated
from iec.tables.rows import Row, paired_with
from iec.tables.styles import bases

Key = tuple[str, int]
"""Of an entry: the cell's slug and N."""
Ends = tuple[float | None, ...]
"""(value, low, high) of a score; None for what is infinite or not known, which JSON has no word for."""
WORDS = {"iec": "IEC", "heun": "Heun"}
SECONDS, CALLS = "measured seconds an image", "network calls an image"


@dataclass(frozen=True)
class Axis:
    """A score whose values can be put beside each other: of N images of one data set, against one reference (``compared_with``: its
    hash, with the extractor and the rules), or beside the images of one cell (``beside``, in words; empty for other scores).
    """

    label: str
    data: str
    n: int
    higher_is_better: bool
    compared_with: str
    beside: str = ""


@dataclass(frozen=True)
class Place:
    """Where the page shows a row: the section, and the number of its line, from 1."""

    section: str
    label: str
    line: int


@dataclass(frozen=True)
class Entry:
    """facets: name -> value that rows are filtered by. costs: of one image, name -> those that are known. calls: in words.
    arithmetic: see `Technique.arithmetic`. first: the axis of the first score of its protocol. base: of the row that it is compared
    with, or that it corrects.
    """

    key: Key
    data: str
    places: tuple[Place, ...]
    facets: dict[str, str]
    costs: dict[str, float]
    calls: str
    arithmetic: str
    simulated: bool
    machines: tuple[str, ...]
    scores: dict[Axis, Ends]
    first: Axis | None
    base: Key | None
    command: str


def entries_of(section: str, rows: Sequence[Row], experiment: Experiment) -> list[Entry]:
    """Of the rows of a section, in their order. section: its name."""
    by_label = {row.label: row for row in rows}
    references = paired_with({row.label: row.result for row in rows}, experiment.references)
    origins = bases(experiment.rows) | experiment.compared
    entries = []
    for row in rows:
        cell, manifest = row.result.cell, row.result.manifest
        reference = by_label.get(references.get(row.label, ""))
        scores = _scores(row, reference)
        base = by_label.get(origins.get(row.label, ""))
        calls = row.texts()["calls (full+cached+corr.)"]
        entry = Entry(
            key=_key(row),
            data=cell.card.reference,
            places=(Place(section, row.label, experiment.labels.index(row.label) + 1),),
            facets={
                "Model": cell.card.name,
                "Technique": _technique(cell),
                "Correction": _correction(cell),
                "Steps T": str(len(cell.sampler.timetable)),
            },
            costs={SECONDS: manifest.seconds_per_image, CALLS: manifest.calls_per_image["total"], **_counted(row)},
            calls=calls,
            arithmetic=cell.technique.arithmetic,
            simulated=simulated(cell.technique.arithmetic),
            machines=manifest.machines,
            scores=scores,
            first=next(iter(scores), None) if row.result.records else None,
            base=None if base is None or base is row else _key(base),
            command=experiment.command(row.label),
        )
        entries.append(entry)
    return entries


def _key(row: Row) -> Key:
    return row.result.cell.slug, row.result.manifest.num_images


def _technique(cell: Cell) -> str:
    name = "full precision" if cell.technique_name == "none" else cell.technique_name
    return f"{name}, compiled" if cell.compile else name


def _correction(cell: Cell) -> str:
    """All that corrects a step, with or without a call; ``none``."""
    sampler, words = cell.sampler, []
    if cell.correction_name != "none":
        words.append(WORDS[cell.correction_name] + (" renorm" if sampler.correction.renorm else ""))
    if cell.corrector_name:
        words.append(cell.corrector_name)
    if sampler.epsilon_scale != 1:
        words.append(f"scaling {sampler.epsilon_scale:g}")
    return " + ".join(words) or "none"


def _counted(row: Row) -> dict[str, float]:
    cost = row.image_cost
    return {} if cost is None else {name: float(of(cost)) for name, of in COSTS.items()}


def _scores(row: Row, reference: Row | None) -> dict[Axis, Ends]:
    """The paired ones beside the ``reference`` row last."""
    card, n = row.result.cell.card, row.result.manifest.num_images
    scores: dict[Axis, Ends] = {}
    for record in row.result.records:
        rules = [record.protocol, record.reference_hash, record.extractor_hash, record.rules, record.clip]
        for score in record.scores.values():
            axis = Axis(score.label, card.reference, n, score.higher_is_better, canonical_hash(rules))
            if not isnan(score.value):
                scores[axis] = _ends(score)
    if reference is not None:
        cell = reference.result.cell
        beside = f"{cell.card.name}, {_technique(cell)}, T = {len(cell.sampler.timetable)}"
        for label in row.paired:
            axis = Axis(label, card.reference, n, row.higher_is_better[label], cell.slug, beside)
            scores[axis] = _ends(row.scores[label])
    return scores


def _ends(score: Iterable[float]) -> Ends:
    return tuple(float(end) if isfinite(end) else None for end in score)
