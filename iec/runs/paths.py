"""The folders and files that a configuration names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from iec.errors import ConfigError
from iec.io.files import require_folder
from iec.io.paths import user_path
from iec.io.runtime import entry_point

PATHS = (
    "paths.output",
    "paths.artifacts",
    "paths.cell",
    "model.weights",
    "model.data",
    "model.prompts",
    "metrics.clip",
    "efficiency.artifact",
    "efficiency.file",
)
"""Keys of files and folders."""


def with_home(config: DictConfig) -> DictConfig:
    """A copy in which ``~`` at the beginning of a path is the home folder; a shell leaves it alone inside quotes and after ``=``.
    Raises `ConfigError` for a user whose home is not known.
    """
    config = config.copy()
    for key in PATHS:
        path = OmegaConf.select(config, key)
        if isinstance(path, str) and path.startswith("~"):
            try:
                OmegaConf.update(config, key, str(user_path(path)))
            except ConfigError as error:
                raise ConfigError(f"{key}={error}") from error
    return config


@dataclass(frozen=True)
class Paths:
    """output: root of all cells. artifacts: calibrations and locks, shared by cells. cell: an explicit folder for this one cell."""

    output: Path
    artifacts: Path
    cell: Path | None

    @classmethod
    def of(cls, config: DictConfig) -> "Paths":
        """From the configuration group ``paths``."""
        return cls(Path(config.output), Path(config.artifacts), None if config.cell is None else Path(config.cell))

    def require_usable(self) -> None:
        """Raises `StoreError` for one that is a file, a link to nothing or cannot be made or written, before anything is computed.

        An artifacts folder that is there need not be writable: see `iec.io.artifacts.cached`.
        """
        if self.cell is None:
            require_folder(self.output, "paths.output")
        else:
            require_folder(self.cell, "paths.cell")
        if not self.artifacts.is_dir():  # one that is there may be read-only: it may have all that is needed
            require_folder(self.artifacts, "paths.artifacts")


class SweepFolder(Callback):
    """Puts the files of a Hydra sweep into ``paths.output``, once that is known to be a folder.

    Hydra makes hydra.run.dir and hydra.sweep.dir before any code of ours, and ends with a traceback where it cannot. Both are the
    working directory therefore, and this sets the one of a sweep, unless it was given.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with entry_point():
            output = Path(with_home(config).paths.output)
            require_folder(output, "paths.output")
        if config.hydra.sweep.dir == ".":
            with read_write(config.hydra):
                config.hydra.sweep.dir = str(output)
