"""A table as a run of Weights & Biases.

Its id is the hash of its name and its cells; it and its cells are the group of its name, unless logger.group is set. It has the
table, as in table.md, and its pictures.
"""

from collections.abc import Mapping
from pathlib import Path

from iec.io.files import canonical_hash
from iec.io.wandb import wandb_run
from iec.runs.cell import Cell
from iec.tables.experiment import Experiment


def log_table(
    experiment: Experiment, cells: Mapping[str, Cell], header: list[str], body: list[list[str]], pictures: list[Path]
) -> None:
    """Log a table and its pictures; its cells are logged on their own. Raises `LoggerError`."""
    cell = next(iter(cells.values()))
    if cell.logger.name == "wandb":
        import wandb

        slugs = {label: cell.slug for label, cell in cells.items()}
        run_id = canonical_hash([experiment.name, slugs])[:10]
        table = wandb.Table(columns=["label", *header[1:]], data=body)
        name, values = experiment.name, {"title": experiment.title, "cells": slugs}
        with wandb_run(cell.logger, cell.paths.output, run_id, name, name, "table", values) as run:
            run.log({"table": table, **{path.stem: wandb.Image(str(path)) for path in pictures}})
