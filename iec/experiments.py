"""An experiment file: the rows of a table, each a cell given by Hydra overrides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from iec.cell import Cell
from iec.config import register
from iec.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Experiment:
    """rows: label -> overrides of ``run.py``. reference: the row whose images and trajectories the others are paired with.

    figures: name -> labels that share one plot of error against step; one plot of all rows if there are none.
    """

    name: str
    title: str
    reference: str
    rows: dict[str, list[str]]
    figures: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path, extra: Sequence[str] = ()) -> "Experiment":
        """``extra`` overrides apply to every row, after its own. Raises `ConfigError`.

        The file's ``variants``, ending of the label -> overrides, make several rows of each.
        """
        try:
            entry = yaml.safe_load(path.read_text(encoding="utf-8"))
            pairs = [
                (label + ending, [*entry.get("common", []), *own, *variant, *extra])
                for label, own in entry["rows"].items()
                for ending, variant in (entry.get("variants") or {"": []}).items()
            ]
            rows = dict(pairs)
            experiment = cls(path.stem, entry["title"], entry["reference"], rows, entry.get("figures") or {})
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not an experiment file ({error!r}); see experiments/bundled.yaml.") from error
        if experiment.reference not in rows:
            raise ConfigError(f"{path}: reference {experiment.reference!r} is not one of its rows {list(rows)}.")
        if len(rows) < len(pairs):
            raise ConfigError(f"{path}: two rows have the same label, an ending of the variants included. Rename one.")
        unknown = {label for labels in experiment.figures.values() for label in labels} - rows.keys()
        if unknown:
            raise ConfigError(f"{path}: its figures name {sorted(unknown)}, which are not rows. Correct the labels.")
        return experiment

    def cells(self) -> dict[str, Cell]:
        """label -> checked cell. Raises `ConfigError` naming the row whose overrides cannot be composed."""
        register()
        cells = {}
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            for label, overrides in self.rows.items():
                try:
                    cells[label] = Cell.from_config(compose("config", overrides=overrides))
                except HydraException as error:
                    raise ConfigError(f"Row {label!r} ({' '.join(overrides)}): {error}") from error
        return cells

    def command(self, label: str) -> str:
        """The command that computes a row alone."""
        return "python run.py " + " ".join(f"'{o}'" if set(o) & set(" []{}()") else o for o in self.rows[label])
