"""The pictures that come with a table: samples, error against step, scores, and quality against cost."""

from pathlib import Path

from iec import plots
from iec.experiments import Experiment
from iec.rows import PSNR, Row

GRID_COLUMNS = 12
CORRECTED = " + IEC"
"""The end of the label of a row that corrects the row labelled without it."""


def write_pictures(rows: list[Row], experiment: Experiment, folder: Path) -> list[Path]:
    """grid.png, error.png (error-NAME.png for each of the experiment's figures), scores.png, cost.png; those that have content."""
    paths = [folder / "grid.png"]
    plots.sample_grid(paths[0], {row.label: row.result.first_images(GRID_COLUMNS) for row in rows}, experiment.title)
    paths += _errors(rows, experiment, folder)
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    if names:
        paths.append(folder / "scores.png")
        metrics = {name: [row.scores[name] for row in rows] for name in names}
        n = rows[0].result.manifest["num_images"]
        plots.scores_with_intervals(paths[-1], [row.label for row in rows], metrics, f"{experiment.title}, N = {n}")
    points = _points(rows, [name for name in (PSNR, *names[:1]) if any(name in row.scores for row in rows)])
    if points:
        paths.append(folder / "cost.png")
        plots.quality_against_cost(paths[-1], points, "bit operations an image (T)", experiment.title)
    return paths


def _errors(rows: list[Row], experiment: Experiment, folder: Path) -> list[Path]:
    curves = {row.label: row.errors for row in rows if row.errors is not None}
    figures = {f"error-{name}.png": labels for name, labels in experiment.figures.items()} or {"error.png": list(curves)}
    paths = []
    for name, labels in figures.items():
        shown = {label: curves[label] for label in labels if label in curves}
        if shown:
            n = len(next(iter(shown.values())))
            paths.append(folder / name)
            title = f"Distance to '{' and '.join(experiment.references)}', n = {n}"
            plots.error_against_step(paths[-1], shown, r"$\|x_i - x_i^{ref}\| / \|x_i^{ref}\|$", title)
    return paths


def _points(rows: list[Row], names: list[str]) -> dict[str, list[plots.Point]]:
    """metric -> a point for each row whose cost is known; a corrected row is linked to the row that it corrects."""
    panels: dict[str, list[plots.Point]] = {}
    for name in names:
        known = {row.label: row for row in rows if row.image_cost is not None and name in row.scores}
        for label, row in known.items():
            base = label.removesuffix(CORRECTED)
            linked = base if base != label and base in known else None
            assert row.image_cost is not None  # known holds no other
            panels.setdefault(name, []).append(plots.Point(label, row.image_cost.bops / 1e12, row.scores[name], linked))
    return panels
