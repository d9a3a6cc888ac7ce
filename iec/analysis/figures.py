"""The pictures of an analysis; labels and titles are escaped as in `iec.tables.plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from iec.analysis.errors import Errors
from iec.analysis.rule import Pair, Transfer
from iec.metrics.interval import mean_interval
from iec.tables.plots import STEP, plain, save, steps_and_grid
from iec.tables.styles import HUES


def norms_against_step(path: Path, steps: Sequence[int], curves: Mapping[str, np.ndarray], title: str, ylabel: str) -> None:
    """Mean over images, one curve [N, steps] for each matrix, nan where it did not converge; the band: 5 to 95 % of the images."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    for k, (label, values) in enumerate(curves.items()):
        known, colour = ~np.isnan(values).all(axis=0), HUES[k % len(HUES)]
        if not known.any():
            axis.plot([], [], color=colour, label=f"{plain(label)} (no image converged)")
            continue
        x, values = np.asarray(steps)[known], values[:, known]
        low, high = np.nanquantile(values, [0.05, 0.95], axis=0)
        axis.plot(x, np.nanmean(values, axis=0), "o-", ms=3, label=plain(label), color=colour)
        axis.fill_between(x, low, high, alpha=0.2, color=colour, linewidth=0)
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel=STEP, ylabel=ylabel, title=plain(title), ylim=(0, None))
    steps_and_grid(axis)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def error_parts(path: Path, runs: Mapping[str, Errors], title: str) -> None:
    """Three panels against the step: the accumulated error, what a step makes, and how it magnifies what was there before.

    A curve for each run: mean over images with its 95 % interval; the third panel on a log axis.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    for k, (label, e) in enumerate(runs.items()):
        effective = np.array(e.effective)
        style = {"color": HUES[(1 + k) % len(HUES)], "linestyle": "-" if k == 0 else "--", "label": plain(label)}
        _band(axes[0], np.array([0, *(effective + 1)]), e.total[:, [0, *(effective + 1)]], style)
        _band(axes[1], effective, e.made[:, effective], style)
        _band(axes[2], effective, e.growth[:, effective], style)
    axes[0].set(title="accumulated", ylabel=r"$\|x_i - r_i\| / \|r_i\|$")
    axes[1].set(title="made by the step, from the reference state", ylabel=r"$\|\Phi_i(r_i) - r_{i+1}\| / \|r_{i+1}\|$")
    axes[2].set(title="growth of what was there before", ylabel=r"$\|\Phi_i(x_i) - \Phi_i(r_i)\| / \|x_i - r_i\|$")
    axes[2].axhline(1, color="black", linewidth=0.8, linestyle=":")
    for axis in axes:
        axis.set(xlabel=STEP)
        steps_and_grid(axis)
        axis.legend(fontsize=8)
    save(figure, path, title)


def gains(path: Path, steps: Sequence[int], curves: Mapping[str, np.ndarray], chosen: Sequence[int], title: str) -> None:
    """Predicted relative change of the final squared error by a correction at one step alone, a curve [steps] for each lambda."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    for k, (label, values) in enumerate(curves.items()):
        axis.plot(steps, values, "o-", ms=3, label=plain(label), color=HUES[k % len(HUES)])
    for n, i in enumerate(chosen):
        axis.axvline(i, color="black", linewidth=0.6, alpha=0.35, label="suggested" if n == 0 else None)
    axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel=STEP, ylabel="change of the final squared error (%)", title=plain(title))
    steps_and_grid(axis)
    axis.legend(fontsize=8)
    save(figure, path)


def predicted_and_measured(path: Path, pairs: Sequence[Pair], rules: Sequence[Transfer], predictor: str, score: str) -> None:
    """The change of the score, above 0 where it is better, against its predictor; a dot with a 95 % interval for each pair, filled
    where the correction pays. A line: the threshold that was fitted on the model of its colour.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.8))
    models = list(dict.fromkeys(pair.model for pair in pairs))
    colours = {model: HUES[(1 + k) % len(HUES)] for k, model in enumerate(models)}
    images = rules[0].images
    for pair in pairs:
        colour, gain = colours[pair.model], pair.gain
        ends = [[gain.value - gain.low], [gain.high - gain.value]]
        look: dict[str, Any] = {"color": colour, "mfc": colour if pair.pays else "white", "ms": 5, "elinewidth": 1, "capsize": 2}
        axis.errorbar(pair.predicted(predictor, images), gain.value, yerr=ends, fmt="o", **look)
    for model in models:
        c = next(rule.c for rule in rules if rule.fitted_on == model)
        text = f"{model}: {'never' if c == np.inf else 'always' if c == -np.inf else f'c = {c:.1f} dB'}"
        axis.plot([], [], "o", color=colours[model], label=plain(text))
        if np.isfinite(c):
            axis.axvline(c, color=colours[model], linewidth=1, linestyle="--")
    axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel=f"{predictor.replace('_', ' ')} (dB), {images} images", ylabel=plain(f"change of {score}, better above 0"))
    axis.set_title("filled: the correction pays; dashed: threshold fitted on the model of that colour", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)


def _band(axis: Axes, x: np.ndarray, values: np.ndarray, style: dict[str, str]) -> None:
    known = ~np.isnan(values).any(axis=0)
    x, values = x[known], values[:, known]
    low, high = mean_interval(values)
    axis.plot(x, values.mean(axis=0), **style)  # type: ignore[arg-type]  # keyword arguments of a line
    axis.fill_between(x, low, high, alpha=0.2, color=style["color"], linewidth=0)
