"""Maps: what a correction changes in a score, over two settings at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm

from iec.metrics.interval import Interval
from iec.tables.plots import plain, save

Change = tuple[str, str]
"""(label on the y axis, label on the x axis)"""
LINEAR = 0.03
"""The share of the largest change up to which the colours are linear; logarithmic beyond."""
STRONG = 0.6
"""The share of the scale of colours from which a number is white."""


def change_maps(
    path: Path,
    panels: Mapping[str, Mapping[Change, Interval]],
    ys: Sequence[str],
    xs: Sequence[str],
    higher_is_better: bool,
    title: str,
) -> None:
    """A panel for each correction, a square for each pair of settings: the change of the score from the row without correction.

    Blue: better; red: worse; the colours of all panels are the same. Bold: the 95 % interval excludes 0; in brackets: it holds 0.
    Grey: no such row. panels have one change at least.
    """
    size = 0.62 * len(xs) * len(panels) + 2.2, 0.27 * len(ys) + 1.1
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    largest = max(abs(change.value) for changes in panels.values() for change in changes.values()) or 1.0
    norm = SymLogNorm(LINEAR * largest, vmin=-largest, vmax=largest)
    for axis, (name, changes) in zip(axes[0], panels.items(), strict=True):
        gains = np.full((len(ys), len(xs)), np.nan)
        for (y, x), change in changes.items():
            gains[ys.index(y), xs.index(x)] = change.value if higher_is_better else -change.value
        axis.imshow(gains, cmap="RdBu", norm=norm, aspect="auto")
        for (y, x), change in changes.items():
            _number(axis, xs.index(x), ys.index(y), change, abs(norm(abs(change.value)) - 0.5) * 2 > STRONG)
        axis.set_facecolor("0.9")
        axis.set_title(plain(name), fontsize=9)
        axis.set_xticks(range(len(xs)), [plain(x) for x in xs], fontsize=8)
        axis.tick_params(length=0)
    axes[0, 0].set_yticks(range(len(ys)), [plain(y) for y in ys], fontsize=8)
    known = any(change.known for changes in panels.values() for change in changes.values())
    save(figure, path, title, f"\nblue: better, red: worse{'; in brackets: the 95 % interval holds 0' if known else ''}")


def _number(axis: Axes, x: int, y: int, change: Interval, on_dark: bool) -> None:
    number = f"{change.value:+.0f}" if abs(change.value) >= 10 else f"{change.value:+.2g}"
    text = f"({number})" if change.known and not change.sign else number
    colour = "white" if on_dark else "black" if change.sign else "0.35"
    axis.text(x, y, text, color=colour, weight="bold" if change.sign else "normal", ha="center", va="center", size=7)
