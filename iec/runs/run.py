"""The command ``run.py`` (also ``iec run``), and what it does with one configuration."""

import logging
import math

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from iec.io.resources import configs
from iec.io.runtime import entry_point, keep_freed_memory
from iec.runs.cell import Cell
from iec.runs.config import register
from iec.runs.failures import sweep_job
from iec.runs.runner import Result, run_cell
from iec.runs.tracking import log_cell

log = logging.getLogger(__name__)


def command() -> None:
    """What the command line says: one cell, or with -m a sweep."""
    register()
    with entry_point():
        main()


@hydra.main(version_base="1.3", config_path=str(configs()), config_name="config")
def main(config: DictConfig) -> float | None:
    """One cell; returns its first score, so that sweepers can optimise it."""
    keep_freed_memory()  # here, because the process of a cluster job comes straight to this function
    with sweep_job() if HydraConfig.get().mode == RunMode.MULTIRUN else entry_point():
        return run_from_config(config)


def run_from_config(config: DictConfig) -> float | None:
    """Compute a cell, show it, log it. Returns the first score, or None without metrics or without the whole cell."""
    result = run_cell(Cell.from_config(config))
    if result is None:
        return None
    show(result)
    log_cell(result)
    return None if result.record is None else next(iter(result.record.scores.values())).value


def show(result: Result) -> None:
    """The cell's figures, to the log."""
    manifest = result.manifest
    calls = ", ".join(f"{kind} {count:g}" for kind, count in manifest.calls_per_image.items())
    log.info("%s", result.cell.folder)
    log.info("  N = %d, network calls per image: %s; %.3f s per image", manifest.num_images, calls, manifest.seconds_per_image)
    for score in result.scores:
        floor = f"; as many real images: {result.floors[score.label]:.4g}" if score.label in result.floors else ""
        interval = "" if math.isnan(score.low) else f" [{score.low:.4f}, {score.high:.4f}]"  # metrics.bootstrap=0
        log.info("  %s = %.4f%s%s", score.label, score.value, interval, floor)
