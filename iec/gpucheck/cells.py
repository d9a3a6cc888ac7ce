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
    common = [f"model={MODEL}", "metrics=none", f"paths.output={folder}", f"paths.artifacts={folder / 'artifacts'}"]
    with initialize_config_dir(str(configs()), version_base="1.3"):
        return Cell.from_config(compose("config", overrides=[*common, *overrides]))
