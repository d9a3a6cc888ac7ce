"""What an analysis is about and what it leaves behind: from overrides of ``iec run`` to a setup, and a JSON file of all numbers."""

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iec.analysis.setup import Setup
from iec.analysis.state import State
from iec.errors import ConfigError
from iec.io.environment import describe_device, git_revision
from iec.io.files import canonical_hash, write_text
from iec.metrics.interval import Interval
from iec.runs.cell import Cell
from iec.runs.sampling import prepare
from iec.sampling.ddim import takes_single_steps
from iec.tables.experiment import Experiment

DIGITS = 6


@dataclass(frozen=True)
class Subject:
    """A cell, and where its analysis goes. images: 0 .. images - 1 of the cell's seed, ``batch_size`` at a time."""

    cell: Cell
    overrides: tuple[str, ...]
    images: int
    out: Path
    label: str

    @classmethod
    def of(cls, overrides: Sequence[str], images: int, out: Path, label: str | None = None) -> "Subject":
        """Checked, nothing loaded. label: of the files and figures; the cell's slug if None. Raises `ConfigError`."""
        (subject,) = cls.of_experiment(Experiment("analysis", "", (), {label or "": list(overrides)}, {}), images, out)
        return subject

    @classmethod
    def of_experiment(cls, experiment: Experiment, images: int, out: Path) -> list["Subject"]:
        """One for each row of an experiment file, labelled as it is; all checked. Raises `ConfigError`."""
        if images < 1:
            raise ConfigError(f"--images {images} must be at least 1.")
        found = experiment.cells().items()
        if wrong := [label or cell.slug for label, cell in found if not takes_single_steps(cell.sampler)]:
            raise ConfigError(
                f"{', '.join(wrong)}: analyses take single steps. A multistep solver has none, nor have "
                "corrector=unic, stepback and restart, nor efficiency.schedule=adaptive. Use sampler=ddim, corrector=none and "
                "another schedule."
            )
        return [cls(cell, tuple(experiment.rows[label]), images, out, label or cell.slug) for label, cell in found]

    def setup(self) -> Setup:
        """Loads the model and prepares the technique."""
        model = self.cell.model.load(str(self.cell.device))
        prepared, sampler = prepare(self.cell, model)
        assert takes_single_steps(sampler)  # `of_experiment` lets no other pass
        return Setup.of(model, prepared.network, sampler)

    @property
    def batches(self) -> list[range]:
        size = self.cell.card.batch_size if self.cell.config.batch_size is None else self.cell.batch_size
        return [range(k, min(k + size, self.images)) for k in range(0, self.images, size)]

    def state(self, kind: str, **depends: Any) -> State:
        """Of an analysis that also depends on ``depends``, JSON values."""
        whole = {"identity": self.cell.identity, "images": self.images, "kind": kind, **depends}
        return State(self.out / "state" / f"{kind}-{canonical_hash(whole)[:12]}")

    def path(self, kind: str, suffix: str) -> Path:
        """Of a file; a label may hold what no name of a file can."""
        words = re.sub(r"[^\w.+-]+", "-", self.label.lower().replace("=", ""))
        return self.out / f"{kind}-{words}{suffix}"

    def write(self, kind: str, numbers: dict[str, Any]) -> Path:
        """KIND-LABEL.json, with what the numbers were measured on; floats are kept to 6 significant digits, nan becomes null."""
        provenance = {
            "analysis": kind,
            "label": self.label,
            "overrides": [o for o in self.overrides if not o.startswith("paths.")],  # on which no number depends
            "cell": self.cell.slug,
            "num_images": self.images,
            "seed": self.cell.seed,
            "machine": describe_device(self.cell.device),
            "torch": torch.__version__,
            "revision": git_revision(),
            "date": datetime.date.today().isoformat(),
        }
        text = json.dumps({**provenance, **plain_values(numbers)}, allow_nan=False) + "\n"
        path = self.path(kind, ".json")
        write_text(path, text)
        return path


def plain_values(value: Any) -> Any:
    """JSON values."""
    if isinstance(value, dict):
        return {str(key): plain_values(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray | Interval):
        return [plain_values(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value
