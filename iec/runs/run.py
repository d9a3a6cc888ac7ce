"""What ``run.py`` does with one configuration."""

import logging

from omegaconf import DictConfig

from iec.runs.cell import Cell
from iec.runs.runner import Result, run_cell
from iec.runs.tracking import log_cell

log = logging.getLogger(__name__)


def run_from_config(config: DictConfig) -> float | None:
    """Compute a cell, show it, log it. Returns the first score, or None without metrics or without the whole cell."""
    result = run_cell(Cell.from_config(config))
    if result is None:
        return None
    show(result)
    log_cell(result)
    return None if result.record is None else next(iter(result.record["scores"].values()))["value"]


def show(result: Result) -> None:
    """The cell's figures, to the log."""
    manifest = result.manifest
    calls = ", ".join(f"{kind} {count:g}" for kind, count in manifest["calls_per_image"].items())
    log.info("%s", result.cell.folder)
    log.info(
        "  N = %d, network calls per image: %s; %.3f s per image", manifest["num_images"], calls, manifest["seconds_per_image"]
    )
    for score in (result.record or {"scores": {}})["scores"].values():
        log.info("  %s = %.4f [%.4f, %.4f]", score["label"], score["value"], score["low"], score["high"])
