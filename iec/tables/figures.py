"""The pictures that come with a table: samples, quality against seconds and cost, error and noise against step, scores, maps."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from iec.tables import plots
from iec.tables.experiment import COSTS, Experiment
from iec.tables.maps import change_maps
from iec.tables.measured import Measured, measured, simulated
from iec.tables.rows import PSNR, Row
from iec.tables.styles import GREY, bases, styles

KINDS = ("grid", "seconds", "error", "noise", "scores", "cost", "map")
"""The first words of their names."""
GRID_COLUMNS, GRID_ROWS = 12, 8
LEGIBLE = 40
"""Rows that one picture can show."""


def write_pictures(rows: list[Row], experiment: Experiment, folder: Path) -> list[Path]:
    """grid.png, seconds.png, error.png (error-NAME.png for each of the experiment's figures), noise.png, scores.png, cost.png, or
    map-SCORE.png; those that have content. Of rows of several models each model has its own: grid-MODEL.png ..., see `by_picture`.
    Pictures of these names that are no longer among them are removed.
    """
    paths = []
    for model, part in by_picture(experiment).items():
        if shown := [row for row in rows if row.label in part.rows]:
            labels = grid_labels(shown, part)
            samples = {row.label: row.result.first_images(GRID_COLUMNS) for row in shown if row.label in labels}
            paths.append(_path(folder, "grid", model))
            plots.sample_grid(paths[-1], samples, part.title)
    paths += write_plots(measured(rows, bases(experiment.rows)), experiment, folder)
    for path in folder.glob("*.png"):
        if path not in paths and path.stem.partition("-")[0] in KINDS:
            path.unlink()  # of rows that the table had once
    return paths


def grid_labels(rows: Sequence[Row], experiment: Experiment) -> list[str]:
    """The rows whose samples are shown: those of the file's ``grid`` that are there, else references and rows with a corrected row
    beside them, `GRID_ROWS` at most.
    """
    present = [row.label for row in rows]
    if chosen := [label for label in experiment.grid if label in present]:
        return chosen
    pairs = [label for pair in bases(experiment.rows).items() for label in reversed(pair) if label in present]
    references = [label for label in experiment.references if label in present]
    return list(dict.fromkeys([*references, *pairs, *present]))[:GRID_ROWS]


def write_plots(rows: Sequence[Measured], experiment: Experiment, folder: Path) -> list[Path]:
    """The pictures without the samples; in a file with two axes of variants maps, for plots of single rows, so many, could not be
    read.
    """
    draws = (_errors, _noise, _maps) if experiment.product else (_seconds, _errors, _noise, _scores, _cost)
    paths = []
    for model, part in by_picture(experiment).items():
        if shown := [row for row in rows if row.label in part.rows]:
            paths += [path for draw in draws for path in draw(shown, part, folder, model)]
    return paths


def by_picture(experiment: Experiment) -> dict[str, Experiment]:
    """Word of the names of files -> what shares pictures: the rows of a model, or, where they are more than is `LEGIBLE`, are
    compared and are on no map, those of each of the experiment's figures, and without figures of each family.
    """
    parts = {}
    for model, part in experiment.by_model().items():
        if not part.compared or part.product or len(part.rows) <= LEGIBLE:
            parts[model] = part
            continue
        for name, labels in (part.figures or _families(part)).items():
            title = f"{part.title}, {name}" if name else part.title
            rows = {label: part.rows[label] for label in part.rows if label in labels}
            parts[_slug(name) or model] = replace(part, title=title, rows=rows, figures={})
    return parts


def _families(experiment: Experiment) -> dict[str, list[str]]:
    """Label of a row that others are compared with -> its own and theirs; empty -> the rest."""
    families: dict[str, list[str]] = {}
    for label in experiment.rows:
        base = experiment.compared.get(label, label if label in experiment.compared.values() else "")
        families.setdefault(base, []).append(label)
    return families


def _slug(text: str) -> str:
    """For the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _path(folder: Path, *words: str) -> Path:
    """WORD-WORD.png, without empty words."""
    return folder / f"{'-'.join(word for word in words if word)}.png"


def _errors(rows: Sequence[Measured], experiment: Experiment, folder: Path, model: str) -> list[Path]:
    """A picture for each figure of the experiment. Without figures one of all rows, if half of those that are no reference have a
    curve: others differ from the reference in their number of steps, and a picture without them would pass for the table.
    """
    curves = {row.label: row for row in rows if row.distance is not None}
    figures = dict(experiment.figures)
    if not figures and 2 * len(curves) >= len([row for row in rows if row.label not in experiment.references]):
        figures = {"": list(curves)}
    references = "' or '".join(label for label in experiment.references if label in {row.label for row in rows})
    paths = []
    for name, labels in figures.items():
        if shown := [curves[label] for label in labels if label in curves]:
            distances = {row.label: row.distance for row in shown if row.distance is not None}
            differences = {row.label: row.difference for row in shown if row.difference is not None}
            title = f"{experiment.title}\ndistance to '{references}' from the same noise, mean of {shown[0].traced} images"
            paths.append(_path(folder, "error", name, model))
            plots.error_against_step(paths[-1], distances, differences, styles(experiment.rows), title)
    return paths


def _noise(rows: Sequence[Measured], experiment: Experiment, folder: Path, model: str) -> list[Path]:
    curves = {row.label: row.noise for row in rows if row.noise is not None and row.label in experiment.noise}
    if not curves:
        return []
    references = "' or '".join(experiment.references)
    traced = next(row.traced for row in rows if row.label in curves)
    title = f"{experiment.title}\nnoise that a step takes, beside '{references}' from the same noise, mean of {traced} images"
    path = _path(folder, "noise", model)
    plots.noise_against_step(path, curves, styles(experiment.rows), title)
    return [path]


def _scores(rows: Sequence[Measured], experiment: Experiment, folder: Path, model: str) -> list[Path]:
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    if not names:
        return []
    panels = {name: {row.label: row.scores[name] for row in rows} for name in names}
    floors = {name: sorted({row.floors[name] for row in rows if name in row.floors}) for name in names}
    title = f"{experiment.title}, N = {rows[0].images}"
    path = _path(folder, "scores", model)
    plots.scores_with_intervals(path, panels, floors, bases(experiment.rows), styles(experiment.rows), title)
    return [path]


def _seconds(rows: Sequence[Measured], experiment: Experiment, folder: Path, model: str) -> list[Path]:
    """Quality against measured seconds, if any are real. Those of simulated rows are not: grey, and not on the front."""
    seconds = {row.label: row.seconds for row in rows if row.seconds}
    imitated = {row.label for row in rows if simulated(row.arithmetic)}
    panels = _panels(rows, seconds, imitated)
    if not panels or imitated.issuperset(seconds):
        return []
    shown = styles(experiment.rows)
    shown |= {label: replace(shown[label], colour=GREY) for label in imitated}
    note = "; grey: simulated quantization, whose seconds are no integer kernel's" if imitated & seconds.keys() else ""
    title = f"{experiment.title}, N = {rows[0].images}"
    path = _path(folder, "seconds", model)
    plots.quality_against_cost(path, panels, bases(experiment.rows), shown, "measured seconds an image", title, note)
    return [path]


def _cost(rows: Sequence[Measured], experiment: Experiment, folder: Path, model: str) -> list[Path]:
    """Quality against the counted cost, of the rows whose cost is known."""
    panels = _panels(rows, {row.label: COSTS[experiment.cost](row.cost) for row in rows if row.cost is not None})
    if not panels:
        return []
    title = f"{experiment.title}, N = {rows[0].images}"
    path = _path(folder, "cost", model)
    plots.quality_against_cost(path, panels, bases(experiment.rows), styles(experiment.rows), experiment.cost, title)
    return [path]


def _panels(rows: Sequence[Measured], costs: Mapping[str, float], outside: Collection[str] = ()) -> dict[str, plots.Panel]:
    """Of PSNR, and of the first score that all rows have: those of its rows that have a cost. outside: labels of rows that are no
    part of the front.
    """
    common = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    panels = {}
    for name in (PSNR, *common[:1]):
        known = [row for row in rows if row.label in costs and name in row.scores]
        if known:
            points = {row.label: (costs[row.label], row.scores[name]) for row in known}
            panels[name] = plots.Panel(points, all(row.higher_is_better[name] for row in known), frozenset(outside))
    return panels


def _maps(rows: Sequence[Measured], experiment: Experiment, folder: Path, model: str) -> list[Path]:
    """For each score a panel for each variant of the second axis that changes it, the rows of the file against the variants of the
    first.
    """
    ys, xs, endings = experiment.product
    changes = {row.label: row.changes for row in rows}
    paths = []
    for name in dict.fromkeys(name for of_row in changes.values() for name in of_row):
        cells = {ending: {(y, x): changes.get(y + x + ending, {}).get(name) for y in ys for x in xs} for ending in endings}
        panels = {key: {place: c for place, c in panel.items() if c is not None} for key, panel in cells.items()}
        panels = {_trimmed(key): panel for key, panel in panels.items() if panel}
        shown_x = [x for x in xs if any((y, x) in panel for panel in panels.values() for y in ys)]
        shown_y = [y for y in ys if any((y, x) in panel for panel in panels.values() for x in xs)]
        renamed = {key: {(y, _trimmed(x)): c for (y, x), c in panel.items()} for key, panel in panels.items()}
        better = next(row.higher_is_better[name] for row in rows if name in row.changes)
        title = f"{experiment.title}\nchange of {name}, N = {rows[0].images}"
        paths.append(_path(folder, "map", _slug(name), model))
        change_maps(paths[-1], renamed, shown_y, [_trimmed(x) for x in shown_x], better, title)
    return paths


def _trimmed(ending: str) -> str:
    """The ending of a label as a label."""
    return ending.strip(" ,")
