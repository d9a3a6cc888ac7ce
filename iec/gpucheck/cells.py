"""Small cells of a bundled model, as `iec run` makes them."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from iec.io.resources import configs
from iec.runs.cell import Cell
from iec.runs.config import register

MODEL = "ddim_fashion_small"


def cell_of(folder: Path, *overrides: str) -> Cell:
    """A checked cell without scores, below ``folder``. Raises what `Cell.from_config` raises."""
    register()
    with initialize_config_dir(str(configs()), version_base="1.3"):
        config = compose("config", overrides=[f"model={MODEL}", "metrics=none", *overrides])
    config.paths.output = str(folder)  # not as an override, whose grammar has a meaning for some characters
    return Cell.from_config(config)
