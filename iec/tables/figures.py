"""The pictures that come with a table: samples, error against step, scores, and quality against cost."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from iec.tables import plots
from iec.tables.experiment import COSTS, Experiment
from iec.tables.rows import PSNR, Row

GRID_COLUMNS = 12
CORRECTED = " + IEC"
"""The end of the label of a row that corrects the row labelled without it."""


def write_pictures(rows: list[Row], experiment: Experiment, folder: Path) -> list[Path]:
    """grid.png, error.png (error-NAME.png for each of the experiment's figures), scores.png, cost.png; those that have content."""
    path = folder / "grid.png"
    plots.sample_grid(path, {row.label: row.result.first_images(GRID_COLUMNS) for row in rows}, experiment.title)
    return [path, *write_plots(rows, experiment, folder)]


def write_plots(rows: list[Row], experiment: Experiment, folder: Path) -> list[Path]:
    """The pictures without the samples."""
    paths = _errors(rows, experiment, folder)
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    if names:
        paths.append(folder / "scores.png")
        metrics = {name: [row.scores[name] for row in rows] for name in names}
        n = rows[0].result.manifest.num_images
        plots.scores_with_intervals(paths[-1], [row.label for row in rows], metrics, f"{experiment.title}, N = {n}")
    panels = _panels(rows, experiment, [name for name in (PSNR, *names[:1]) if any(name in row.scores for row in rows)])
    if panels:
        paths.append(folder / "cost.png")
        plots.quality_against_cost(paths[-1], panels, experiment.cost, experiment.title)
    return paths


def _errors(rows: list[Row], experiment: Experiment, folder: Path) -> list[Path]:
    curves = {row.label: row.errors for row in rows if row.errors is not None}
    figures = {f"error-{name}.png": labels for name, labels in experiment.figures.items()} or {"error.png": list(curves)}
    references = "' or '".join(label for label in experiment.references if label in {row.label for row in rows})
    paths = []
    for name, labels in figures.items():
        shown = {label: curves[label] for label in labels if label in curves}
        if shown:
            n = len(next(iter(shown.values())))
            paths.append(folder / name)
            ylabel = r"$\|x_i - x_i^{ref}\| / \|x_i^{ref}\|$"
            plots.error_against_step(paths[-1], shown, corrected(shown), ylabel, f"Distance to '{references}', n = {n}")
    return paths


def _panels(rows: list[Row], experiment: Experiment, names: list[str]) -> dict[str, plots.Panel]:
    """metric -> a point for each row whose cost is known, and whose score is finite: the same images have an infinite PSNR. A
    corrected row is linked to the row that it corrects.
    """
    panels = {}
    for name in names:
        scored = [row for row in rows if name in row.scores and np.isfinite(row.scores[name].value)]
        known = {row.label: row for row in scored if row.image_cost is not None}
        bases, points = corrected(known), []
        for label, row in known.items():
            assert row.image_cost is not None  # known holds no other
            points.append(plots.Point(label, COSTS[experiment.cost](row.image_cost), row.scores[name], bases.get(label)))
        if points:
            panels[name] = plots.Panel(points, all(row.higher_is_better[name] for row in known.values()))
    return panels


def corrected(labels: Collection[str]) -> dict[str, str]:
    """Corrected row -> the row that it corrects, where both are there."""
    bases = {label: label.removesuffix(CORRECTED) for label in labels if label.endswith(CORRECTED)}
    return {label: base for label, base in bases.items() if base in labels}
