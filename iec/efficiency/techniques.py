"""The techniques of the paper: none, post-training quantization, DeepCache."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from iec.efficiency.caching import CachedUNetNetwork, find_cut
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.cost import network_cost, parameter_bytes
from iec.efficiency.prepare import quantize
from iec.efficiency.quantization import PTQConfig, weight_bytes
from iec.efficiency.technique import Prepared, Technique
from iec.models import Card, Model
from iec.sampler import Sampler
from iec.timetable import Timetable


@dataclass(frozen=True)
class FullPrecision(Technique):
    """The model as it is."""

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        return Prepared(model.network, cost=network_cost(model.unet, model.card.shape, parameter_bytes(model.unet)))


@dataclass(frozen=True)
class PTQ(PTQConfig, Technique):
    """Simulated post-training quantization. artifact: a calibration file to use instead of one in the artifacts folder."""

    simulated: ClassVar[bool] = True
    artifact: str | None = None

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        config = ptq_config(self)
        network = quantize(model, config, table, artifacts=artifacts, artifact=self.artifact)
        size = weight_bytes(network.quantized)
        return Prepared(network, cost=network_cost(model.unet, model.card.shape, size, config=config))

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        identity = super().identity(card, num_steps)
        del identity["artifact"]  # a file that is not of this very configuration is refused
        return identity


def ptq_config(settings: PTQConfig) -> PTQConfig:
    """The quantization alone, of a technique that has more fields."""
    return PTQConfig(**{f.name: getattr(settings, f.name) for f in fields(PTQConfig)})


@dataclass(frozen=True)
class DeepCache(CachingConfig, Technique):
    """DeepCache (arXiv 2312.00858): steps between two refreshes reuse the deep feature of the last full call."""

    def check(self, card: Card, skeleton: nn.Module, sampler: Sampler) -> None:
        find_cut(skeleton, self.cut_of(card))

    def refresh(self, num_steps: int) -> frozenset[int]:
        return self.steps_of(num_steps)

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        cut = self.cut_of(model.card)
        cost = network_cost(model.unet, model.card.shape, parameter_bytes(model.unet), cut=cut)
        return Prepared(CachedUNetNetwork(model.unet, cut), cost)

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """By the refresh steps, however they were found."""
        return {"technique": "deepcache", "refresh": sorted(self.refresh(num_steps)), "cut": self.cut_of(card)}
