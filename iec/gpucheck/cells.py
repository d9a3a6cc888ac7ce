"""Small cells of a bundled model, as `iec run` makes them."""

from pathlib import Path

from iec.runs.cell import Cell
from iec.runs.config import composing

MODEL = "ddim_fashion_small"


def cell_of(folder: Path, *overrides: str) -> Cell:
    """A checked cell without scores, below ``folder``. Raises what `Cell.from_config` raises."""
    with composing() as composed:
        config = composed([f"model={MODEL}", "metrics=none", *overrides])
    config.paths.output = str(folder)  # not as an override, whose grammar has a meaning for some characters
    return Cell.from_config(config)
