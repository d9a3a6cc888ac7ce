"""``efficiency=engine``: an exported file in place of the model's network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficiency.engine.description import ANY, FLOAT
from iec.efficiency.technique import Prepared, Technique
from iec.errors import ArtifactError, ConfigError, MismatchError
from iec.io.paths import user_path
from iec.models import Card, Model
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable


@dataclass(frozen=True)
class Engine(Technique):
    """A network that ``iec export`` wrote, run by an engine on the CPU. Nothing of it can be changed, and all around it can.

    file: the ONNX file; its sha256 is part of a cell, its path is not. runtime: ``onnxruntime`` or ``openvino``.
    """

    file: str | None = None
    runtime: str = "onnxruntime"

    def __post_init__(self) -> None:
        from iec.efficiency.engine.sessions import require_runtime

        if self.file is None:
            raise ConfigError("efficiency=engine needs efficiency.file=FILE. Write one: iec export CELL FILE.")
        require_runtime(self.runtime)

    @property
    def arithmetic(self) -> str:
        description = self._file.description
        return self.runtime if description.arithmetic == FLOAT else f"{description.arithmetic} {self.runtime}"

    @property
    def _file(self) -> Any:
        from iec.efficiency.engine.file import read_file

        return read_file(user_path(self.file or ""))

    def refresh(self, num_steps: int) -> frozenset[int] | None:
        description = self._file.description
        self._require_timetable(num_steps == len(description.pairs), f"{num_steps} steps")
        return None if description.refresh is None else frozenset(description.refresh)

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        description = self._file.description
        if description.model.name != card.name or description.shape != card.shape or description.tokens != card.tokens:
            raise MismatchError(
                f"{self.file} is a network of {description.model.name}, and the cell's model is {card.name}. Use "
                f"model={description.model.name}, or export a cell of this one."
            )
        self._require_timetable(description.pairs == sampler.timetable.pairs, str([t for t, _ in sampler.timetable.pairs]))
        if description.engine not in (ANY, self.runtime):
            raise MismatchError(
                f"{self.file} is quantized in the form that {description.engine} runs on integers. Use "
                f"efficiency.runtime={description.engine}, or export it with --engine {self.runtime}."
            )
        if not sampler.corrector.keeps_timesteps or (sampler.corrected and sampler.correction.evaluate_at != "t"):
            raise MismatchError(
                f"{self.file} knows its steps by their index: it cannot be asked for another timestep, as iec=heun, "
                "corrector=timeshift and corrector=stepback do. Use another correction, or the network that was exported."
            )
        if description.arithmetic != FLOAT and sampler.full_at_cached_steps:
            raise MismatchError(
                f"iec.cached_steps=full makes full calls at cached steps, for which {self.file} has no scales. Use "
                "iec.cached_steps=cached, or skip."
            )

    def require_compiles(self) -> None:
        raise ConfigError(
            f"model.compile=true: the network is run by {self.runtime}, which compiles it by itself. Use model.compile=false."
        )

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        from iec.efficiency.engine.network import EngineNetwork

        file = self._file
        stored, expected = file.description.model.weights, model.weights_hash
        if stored != expected:
            raise ArtifactError(
                f"{self.file} is a network of other weights: sha256 {stored}, and the cell's model has {expected}. Give "
                "model.weights those that were exported, or export this model."
            )
        network, about = EngineNetwork.of(file, self.runtime, torch.get_num_threads()), file.description
        return Prepared(network, about.cost, own_weights=True, calibration_calls=about.calibration_calls)

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """By the file's bytes, wherever it lies; those of its file of cached calls are known by them."""
        return {"technique": "engine", "file": self._file.sha256, "runtime": self.runtime}

    def _require_timetable(self, same: bool, given: str) -> None:
        if not same:
            steps = [t for t, _ in self._file.description.pairs]
            raise MismatchError(
                f"{self.file} was exported for the timesteps {steps}, and the cell samples {given}. Use the sampler it was "
                f"exported with (sampler.timesteps={str(steps).replace(' ', '')}), or export a cell of this one."
            )
