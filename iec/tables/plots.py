"""Plots of rows. Every function writes one PNG; labels stand once, beside the axes, where they cannot cover anything.

Labels and titles are anybody's text: `plain` keeps matplotlib from reading formulas in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from iec.io.files import write_atomic
from iec.io.images import grid
from iec.metrics.interval import Interval
from iec.tables.formats import one_line
from iec.tables.measured import Curve
from iec.tables.styles import Style

STEP = "sampling step (0 is pure noise)"
ROWS_OF_A_LEGEND = 24
MARKS_OF_A_CURVE = 9


@dataclass(frozen=True)
class Panel:
    """A plot of quality against cost. points: label -> (cost, finite score), one at least. outside: labels that the Pareto front
    leaves out.
    """

    points: Mapping[str, tuple[float, Interval]]
    higher_is_better: bool
    outside: frozenset[str] = frozenset()


def plain(text: str) -> str:
    """Text in one line in which ``$`` begins no formula."""
    return one_line(text).replace("$", r"\$")


def sample_grid(path: Path, rows: Mapping[str, np.ndarray], title: str) -> None:
    """One row of images for each label, uint8 [n, H, W, 1 or 3]; a column shows one seed."""
    count, height = next(iter(rows.values())).shape[:2]
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.62 * count + 2.2, 0.68 * len(rows) + 0.5), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(grid(images, columns=count, scale=max(1, 128 // height)), interpolation="nearest")
        axis.set_axis_off()
        axis.text(-0.01, 0.5, plain(label), transform=axis.transAxes, ha="right", va="center", fontsize=9)
    save(figure, path, title)


def error_against_step(
    path: Path, distances: Mapping[str, Curve], differences: Mapping[str, Curve], styles: Mapping[str, Style], title: str
) -> None:
    """Relative distance to the reference trajectory; where rows are corrected, also what the correction changes in it.

    Rows share images, so the second panel is of paired differences, whose intervals are far narrower than those of the distances.
    The band: the 95 % interval, of the distances only if there are no differences.
    """
    panels = [distances, differences] if differences else [distances]
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.3), squeeze=False)
    for axis, curves in zip(axes[0], panels, strict=True):
        _curves(axis, curves, styles, bands=curves is panels[-1])
    axes[0, 0].set_ylabel(r"$\|x_i - r_i\| / \|r_i\|$")
    if differences:
        axes[0, 1].set_ylabel("the same, minus that without correction")
        axes[0, 1].axhline(0, color="black", linewidth=0.8, linestyle=":")
        known = any(curve.low is not None for curve in differences.values())
        axes[0, 1].set_title(f"change by the correction{', paired: 95 % interval' if known else ''}", fontsize=10)
        axes[0, 0].set_title("distance", fontsize=10)
    _legend(figure, {label: styles[label] for label in distances}, lines=True)
    save(figure, path, title)


def noise_against_step(path: Path, ratios: Mapping[str, Curve], styles: Mapping[str, Style], title: str) -> None:
    """The ratios of `iec.tables.noise`, with 95 % intervals. The steps are those that change something."""
    figure, axis = plt.subplots(figsize=(6.5, 4.3))
    _curves(axis, ratios, styles, bands=True)
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_ylabel(r"$\|\epsilon_i\| / \|\epsilon_i^{ref}\|$")
    _legend(figure, {label: styles[label] for label in ratios}, lines=True)
    save(figure, path, title)


def _curves(axis: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Style], bands: bool) -> None:
    """Lines with markers against the step, and with ``bands`` their intervals."""
    for k, (label, curve) in enumerate(curves.items()):
        style, steps = styles[label], np.arange(len(curve.mean))
        every = max(1, len(steps) // MARKS_OF_A_CURVE)
        marks: dict[str, Any] = {"marker": style.marker, "mfc": style.face, "ms": 4, "markevery": (k % every, every)}
        axis.plot(steps, curve.mean, style.line, color=style.colour, **marks)
        if bands and curve.low is not None and curve.high is not None:
            axis.fill_between(steps, curve.low, curve.high, alpha=0.15, color=style.colour, linewidth=0)
    axis.set(xlabel=STEP)
    steps_and_grid(axis)


def scores_with_intervals(
    path: Path,
    panels: Mapping[str, Mapping[str, Interval]],
    floors: Mapping[str, Sequence[float]],
    bases: Mapping[str, str],
    styles: Mapping[str, Style],
    title: str,
) -> None:
    """A panel for each metric, a dot with its 95 % interval for each row, and a line to it from the row that it corrects. Dotted:
    the ``floors`` of the metric, what as many real images score.
    """
    labels = list(next(iter(panels.values())))
    size = 2.9 * len(panels) + 1.5, 0.3 * len(labels) + 1.3
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (name, scores) in zip(axes[0], panels.items(), strict=True):
        for y, (label, score) in enumerate(scores.items()):
            style = styles[label]
            if (base := scores.get(bases.get(label, ""))) is not None:
                axis.plot([base.value, score.value], [y, y], color=style.colour, linewidth=1, alpha=0.5)
                axis.plot([base.value], [y], "|", color=style.colour, ms=8)
            _mark(axis, score.value, y, style, xerr=_ends(score))
        for value in floors[name]:
            axis.axvline(value, color="black", linewidth=1, linestyle=":")
        axis.set_title(plain(name), fontsize=9)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[0, 0].set_yticks(range(len(labels)), [plain(label) for label in labels], fontsize=8)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)  # the first row on top
    notes = ["a line begins at the value without correction"] if bases.keys() & set(labels) else []
    notes += ["dotted: as many real images"] if any(floors.values()) else []
    save(figure, path, title, f"\n{'; '.join(notes)}" if notes else "")


def quality_against_cost(
    path: Path,
    panels: Mapping[str, Panel],
    bases: Mapping[str, str],
    styles: Mapping[str, Style],
    xlabel: str,
    title: str,
    note: str = "",
) -> None:
    """A panel for each metric; a line leads from a row to its corrections. Dotted: the Pareto front. note: below the title."""
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 5), squeeze=False)
    for axis, (name, panel) in zip(axes[0], panels.items(), strict=True):
        places = {label: (cost, score.value) for label, (cost, score) in panel.points.items()}
        inside = {label: place for label, place in places.items() if label not in panel.outside}
        front = [places[label] for label in pareto_front(inside, panel.higher_is_better)]
        axis.set(xscale="log", xlabel=xlabel, ylabel=plain(name), xmargin=0.08)
        if front:
            axis.step(*zip(*front, strict=True), where="post", color="black", linestyle=":", linewidth=1, alpha=0.6)
        for label, (cost, score) in panel.points.items():
            if bases.get(label) in places:
                line = zip(places[bases[label]], places[label], strict=True)
                axis.plot(*line, color=styles[label].colour, linewidth=0.8, alpha=0.6)
            _mark(axis, cost, score.value, styles[label], yerr=_ends(score))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both")
    shown = {label: style for label, style in styles.items() if any(label in panel.points for panel in panels.values())}
    _legend(figure, shown)
    hollow = "hollow: corrected; " if not all(style.filled for style in shown.values()) else ""
    save(figure, path, title, f"\n{hollow}dotted: no other row is better at the same cost or less{note}")


def pareto_front(places: Mapping[str, tuple[float, float]], higher_is_better: bool) -> list[str]:
    """Labels of the places (cost, score) that beat every one of the same or a lower cost, by rising cost."""
    sign = -1 if higher_is_better else 1
    front: list[str] = []
    for label in sorted(places, key=lambda label: (places[label][0], sign * places[label][1])):
        if not front or sign * places[label][1] < sign * places[front[-1]][1]:
            front.append(label)
    return front


def _mark(axis: Axes, x: float, y: float, style: Style, **errors: Any) -> None:
    """A marker with an error bar."""
    axis.errorbar(x, y, fmt=style.marker, color=style.colour, mfc=style.face, capsize=2, ms=5, elinewidth=1, **errors)


def _ends(score: Interval) -> np.ndarray:
    """[2, 1], as matplotlib takes them: how far the interval reaches to either side."""
    return np.maximum([[score.value - score.low], [score.high - score.value]], 0)


def steps_and_grid(axis: Axes) -> None:
    """For an axis of sampling steps, which are whole numbers."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.grid(alpha=0.3)


def _legend(figure: Figure, styles: Mapping[str, Style], lines: bool = False) -> None:
    """At the right of all axes, one entry a row. lines: with the line of a curve."""
    handles = []
    for style in styles.values():
        look: dict[str, Any] = {"linestyle": style.line if lines else "none", "marker": style.marker, "mfc": style.face, "ms": 5}
        handles.append(Line2D([], [], color=style.colour, **look))
    columns = -(-len(handles) // ROWS_OF_A_LEGEND)
    options: dict[str, Any] = {"bbox_to_anchor": (1, 0.5), "fontsize": 8, "ncols": columns, "handlelength": 2.5 if lines else 1}
    texts = figure.legend(handles, ["-"] * len(handles), loc="center left", **options).get_texts()
    for text, label in zip(texts, styles, strict=True):  # set afterwards: a legend drops labels that begin with _
        text.set_text(plain(label))


def save(figure: Figure, path: Path, title: str = "", note: str = "") -> None:
    """Tight, at 130 dpi, and closed. title: above all axes, with a note below it."""
    figure.tight_layout()
    if title:
        heading = "\n".join(map(plain, title.splitlines())) + note
        figure.suptitle(heading, fontsize=10, y=1.0, va="bottom")  # after the layout, which would leave a gap for it
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=130, bbox_inches="tight"))
    plt.close(figure)
