"""A file as a network of the sampler."""

import numpy as np
import torch
from torch import Tensor

from iec.efficiency.engine.description import INT8, Description
from iec.efficiency.engine.file import EngineFile
from iec.efficiency.engine.sessions import Run, open_session, require_exact_sums
from iec.errors import ConfigError
from iec.sampling.network import FeatureCache, Prediction, Step


class EngineNetwork:
    """Full calls run the file; cached ones the file beside it, from the feature of the last full call. In float32, on the CPU.

    Raises `ConfigError` for a call that the file has no form of: another timestep than the step's, or a cached one.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, description: Description, full: Run, cached: Run | None) -> None:
        self.description, self.full, self.cached = description, full, cached

    @classmethod
    def of(cls, file: EngineFile, runtime: str, threads: int) -> "EngineNetwork":
        """Opens the file. Raises `ArtifactError`, and `DeviceError` for one on integers on a CPU that does not sum them exactly."""
        if file.description.arithmetic == INT8:
            require_exact_sums(runtime)

        def opened(one: EngineFile) -> Run:
            return open_session(one.data, tuple(one.description.outputs), runtime, threads)

        return cls(file.description, opened(file), None if file.cached is None else opened(file.cached))

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        self._require_step(step)
        given = {"x": x, "cond": cond, "feature": None}
        run = self.full
        if step.mode == "cached":
            if self.cached is None or cache is None:
                raise ConfigError("A cached call needs a file of cached calls, and a feature. Export a cell that caches one.")
            run, given["feature"] = self.cached, cache.feature
        arrays = {name: np.ascontiguousarray(v.detach().cpu().float().numpy()) for name, v in given.items() if v is not None}
        out = run({**arrays, "step": np.array(step.index, np.int64)})
        tensors = {name: torch.from_numpy(value).to(x.device) for name, value in out.items()}
        return Prediction(tensors["eps"], tensors.get("feature"))

    def _require_step(self, step: Step) -> None:
        pairs = self.description.pairs
        if not 0 <= step.index < len(pairs) or pairs[step.index][0] != step.timestep:
            raise ConfigError(
                f"The file knows its {len(pairs)} steps by their index, and was asked for timestep {step.timestep} at step "
                f"{step.index}. Use a corrector that leaves the timestep as it is."
            )
