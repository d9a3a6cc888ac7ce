"""The pictures that come with a table. Every function writes one PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from iec.files import write_atomic
from iec.images import grid

COLOURS = ("#4c4c4c", "#999999", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#8c564b", "#17becf")


@dataclass(frozen=True)
class Interval:
    """A measured value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def sample_grid(path: Path, rows: Mapping[str, np.ndarray], title: str) -> None:
    """One row of images for each label, uint8 [n, H, W, 3]; a column shows one seed."""
    count, height = next(iter(rows.values())).shape[:2]
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.62 * count + 2.2, 0.68 * len(rows) + 0.5), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(grid(images, columns=count, scale=max(1, 128 // height)), interpolation="nearest")
        axis.set_axis_off()
        axis.text(-0.01, 0.5, label, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def error_against_step(path: Path, curves: Mapping[str, np.ndarray], ylabel: str, title: str) -> None:
    """Mean relative distance to the reference trajectory, one curve [n, T + 1] for each label; the band is its 95 % interval."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    for k, (label, errors) in enumerate(curves.items()):
        mean = errors.mean(axis=0)
        half = 1.96 * errors.std(axis=0, ddof=1) / np.sqrt(len(errors)) if len(errors) > 1 else np.zeros_like(mean)
        steps, colour = np.arange(len(mean)), COLOURS[k % len(COLOURS)]
        axis.plot(steps, mean, label=label, color=colour, linestyle="--" if k % 2 else "-")
        axis.fill_between(steps, np.maximum(mean - half, 0), mean + half, alpha=0.15, color=colour, linewidth=0)
    axis.set(xlabel="sampling step (0 is pure noise)", ylabel=ylabel, title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


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
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=130))
    plt.close(figure)
