"""The pictures that come with a table. Every function writes one PNG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import BboxBase

from iec.io.files import write_atomic
from iec.io.images import grid
from iec.metrics.interval import Interval

COLOURS = (
    *("#4c4c4c", "#999999", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7"),
    *("#8c564b", "#17becf", "#6a3d9a", "#bcbd22", "#920000", "#1b4d3e", "#ff7fa7", "#3b3bff"),
)


@dataclass(frozen=True)
class Point:
    """A row in a plot of quality against cost. base: the label of the row that it corrects."""

    label: str
    cost: float
    score: Interval
    base: str | None


@dataclass(frozen=True)
class Panel:
    """A plot of quality against cost. points: one at least, with finite scores."""

    points: Sequence[Point]
    higher_is_better: bool


def sample_grid(path: Path, rows: Mapping[str, np.ndarray], title: str) -> None:
    """One row of images for each label, uint8 [n, H, W, 3]; a column shows one seed."""
    count, height = next(iter(rows.values())).shape[:2]
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.62 * count + 2.2, 0.68 * len(rows) + 0.5), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(grid(images, columns=count, scale=max(1, 128 // height)), interpolation="nearest")
        axis.set_axis_off()
        axis.text(-0.01, 0.5, label, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    save(figure, path, title)


def error_against_step(path: Path, curves: Mapping[str, np.ndarray], bases: Mapping[str, str], ylabel: str, title: str) -> None:
    """Mean relative distance to the reference trajectory, one curve [n, T + 1] for each label; the band is its 95 % interval.

    bases: label of a corrected row -> the row that it corrects; drawn in one colour, the corrected one dashed.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    colours = _colours(bases.get(label, label) for label in curves)
    for label, errors in curves.items():
        mean = errors.mean(axis=0)
        half = 1.96 * errors.std(axis=0, ddof=1) / np.sqrt(len(errors)) if len(errors) > 1 else np.zeros_like(mean)
        steps, colour = np.arange(len(mean)), colours[bases.get(label, label)]
        axis.plot(steps, mean, label=label, color=colour, linestyle="--" if label in bases else "-")
        axis.fill_between(steps, np.maximum(mean - half, 0), mean + half, alpha=0.15, color=colour, linewidth=0)
    axis.set(xlabel="sampling step (0 is pure noise)", ylabel=ylabel, title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)


def scores_with_intervals(path: Path, labels: Sequence[str], metrics: Mapping[str, Sequence[Interval]], title: str) -> None:
    """A panel for each metric, a dot with its 95 % interval for each label."""
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(2.9 * len(metrics) + 1.5, 0.36 * len(labels) + 1.3), sharey=True, squeeze=False
    )
    y = np.arange(len(labels))[::-1]
    for axis, (name, intervals) in zip(axes[0], metrics.items(), strict=True):
        value = np.array([i.value for i in intervals])
        ends = np.array([[i.value - i.low, i.high - i.value] for i in intervals]).T
        for k in range(len(labels)):
            colour = COLOURS[k % len(COLOURS)]
            axis.errorbar(value[k], y[k], xerr=np.maximum(ends[:, k : k + 1], 0), fmt="o", color=colour, capsize=3)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0, 0].set_yticks(y, labels, fontsize=8)
    save(figure, path, title)


def quality_against_cost(path: Path, panels: Mapping[str, Panel], xlabel: str, title: str) -> None:
    """A panel for each metric. A full dot is a row, a ring the same row corrected, joined by a line; dotted: the Pareto front."""
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 5.5), squeeze=False)
    colours = _colours(point.base or point.label for panel in panels.values() for point in panel.points)
    for axis, (name, panel) in zip(axes[0], panels.items(), strict=True):
        places = {point.label: (point.cost, point.score.value) for point in panel.points}
        front = [places[label] for label in pareto_front(places, panel.higher_is_better)]
        axis.set(xscale="log", xlabel=xlabel, ylabel=name, xmargin=0.08)
        axis.step(*zip(*front, strict=True), where="post", color="black", linestyle=":", linewidth=1, alpha=0.6)
        for point in panel.points:
            colour = colours[point.base or point.label]
            x, y = places[point.label]
            ends = np.maximum([[y - point.score.low], [point.score.high - y]], 0)
            axis.errorbar(x, y, yerr=ends, fmt="o", color=colour, mfc=colour if point.base is None else "white", capsize=2, ms=5)
            if point.base is not None:
                axis.plot(*zip(places[point.base], (x, y), strict=True), color=colour, linewidth=0.8, alpha=0.6)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both")
    figure.tight_layout()  # final sizes, on which it depends which labels overlap
    for axis, panel in zip(axes[0], panels.values(), strict=True):
        axis.autoscale_view()
        _annotate(axis, [point for point in panel.points if point.base is None], colours)
    rings = "rings: with IEC; " if any(point.base for panel in panels.values() for point in panel.points) else ""
    save(figure, path, f"{title}\n{rings}dotted: no other row is better at the same cost or less")


def _annotate(axis: Axes, points: Sequence[Point], colours: Mapping[str, str]) -> None:
    """A label beside each point, on its inner side, and as far up as it takes to cover no label of a lower one."""
    costs = [point.cost for point in points]
    middle = np.sqrt(min(costs) * max(costs))
    boxes: list[BboxBase] = []
    for point in sorted(points, key=lambda point: point.score.value):
        x, side = (5, "left") if point.cost <= middle else (-5, "right")
        place = (point.cost, point.score.value)
        text = axis.annotate(
            point.label,
            place,
            (x, 4),
            textcoords="offset points",
            ha=side,
            fontsize=7,
            color=colours[point.label],
            annotation_clip=False,
        )
        while any(text.get_window_extent().overlaps(box) for box in boxes):
            text.xyann = (x, text.xyann[1] + 2)
        boxes.append(text.get_window_extent())


def pareto_front(places: Mapping[str, tuple[float, float]], higher_is_better: bool) -> list[str]:
    """Labels of the places (cost, score) that beat every one of the same or a lower cost, by rising cost."""
    sign = -1 if higher_is_better else 1
    front: list[str] = []
    for label in sorted(places, key=lambda label: (places[label][0], sign * places[label][1])):
        if not front or sign * places[label][1] < sign * places[front[-1]][1]:
            front.append(label)
    return front


def _colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each different label."""
    return {label: COLOURS[k % len(COLOURS)] for k, label in enumerate(dict.fromkeys(labels))}


def save(figure: Figure, path: Path, title: str = "") -> None:
    """Tight, at 130 dpi, and closed. title: above all axes."""
    figure.tight_layout()
    if title:
        figure.suptitle(title, fontsize=10, y=1.0, va="bottom")  # after the layout, which would leave a gap for it
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=130, bbox_inches="tight"))
    plt.close(figure)
