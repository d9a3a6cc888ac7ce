"""The techniques of the paper: none, post-training quantization, DeepCache, CacheQuant."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.efficiency.cachequant import CacheQuantConfig, CorrectedCacheNetwork, prepare_cachequant
from iec.efficiency.caching import CachedUNetNetwork, Kind, find_cut
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.cost import FLOAT, CallCost, Cost, network_cost
from iec.efficiency.integer import ARITHMETIC, require_kernels, with_kernels
from iec.efficiency.prepare import CALIBRATION_SEED, calibration_calls, float_batch, model_fingerprint, quantize
from iec.efficiency.quantization import PTQConfig, QuantizedNetwork, weight_bytes
from iec.efficiency.technique import Prepared, Technique
from iec.errors import ConfigError
from iec.io.paths import user_path
from iec.models import Card, Model
from iec.models.cards import require_unet
from iec.models.ideal import IdealNetwork
from iec.models.unet import parameter_bytes
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable


def model_cost(model: Model, weight_bytes: int, cut: int | Kind | None = None, config: PTQConfig = FLOAT) -> Cost:
    """Of network calls on an image of the model; under guidance both branches count."""
    cond = None if model.card.tokens is None else torch.empty(1, *model.card.tokens)
    return network_cost(model.unet, model.card.shape, weight_bytes, cond, cut, config, branches=model.branches)


def ideal_cost(network: IdealNetwork) -> Cost:
    """Of its two matrix products with the data; the data are its weights."""
    macs = 2 * network.data.numel()
    return Cost(network.data.nbytes, CallCost(macs, macs * 32 * 32))


@dataclass(frozen=True)
class FullPrecision(Technique):
    """The model as it is."""

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        network = model.network
        if isinstance(network, IdealNetwork):
            return Prepared(network, cost=ideal_cost(network))
        return Prepared(network, cost=model_cost(model, parameter_bytes(model.unet)))


@dataclass(frozen=True)
class PTQ(PTQConfig, Technique):
    """Post-training quantization. artifact: a calibration file to use instead of one in the artifacts folder.

    kernels: ``simulated`` computes in float arithmetic on the grid, ``int8`` on integers, with compiled passes between them,
    ``int8_unfused`` without; see `iec.efficiency.integer`.
    """

    artifact: str | None = None
    kernels: str = "simulated"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kernels(self.kernels, ptq_config(self))

    @property
    def arithmetic(self) -> str:
        return ARITHMETIC[self.kernels]

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        require_unet(card)

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        config = ptq_config(self)
        network = quantize(model, config, table, artifacts=artifacts, artifact=self.artifact)
        cost = model_cost(model, weight_bytes(network.quantized), config=config)
        if self.kernels != "simulated":
            network = QuantizedNetwork(with_kernels(network.quantized, self.kernels, artifacts))
        return Prepared(network, cost, own_weights=True, calibration_calls=calibration_calls(config, table))

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """Without the artifact: one of another configuration is refused."""
        return {"technique": "ptq", **self.fingerprint(), **kernels_identity(self.kernels)}


def ptq_config(settings: PTQConfig) -> PTQConfig:
    """The quantization alone, of a technique that has more fields."""
    return PTQConfig(**{f.name: getattr(settings, f.name) for f in fields(PTQConfig)})


def kernels_identity(kernels: str) -> dict[str, Any]:
    """Cells from before there was a choice keep their identity."""
    return {} if kernels == "simulated" else {"kernels": kernels}


@dataclass(frozen=True)
class DeepCache(CachingConfig, Technique):
    """DeepCache (arXiv 2312.00858): steps between two refreshes reuse the deep feature of the last full call."""

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        find_cut(skeleton(), self.cut_of(card))

    def refresh(self, num_steps: int) -> frozenset[int]:
        return self.steps_of(num_steps)

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        cut = self.cut_of(model.card)
        cost = model_cost(model, parameter_bytes(model.unet), cut=cut)
        return Prepared(CachedUNetNetwork(model.unet, cut), cost)

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """By the refresh steps, however they were found."""
        return {"technique": "deepcache", "refresh": sorted(self.refresh(num_steps)), "cut": self.cut_of(card)}


@dataclass(frozen=True)
class CacheQuant(CachingConfig, PTQConfig, Technique):
    """Feature caching and quantization together (arXiv 2503.01323); the fields after those of both: `CacheQuantConfig`.

    schedule: also ``dps``: refresh steps found by dynamic programming on the model's features. artifact, kernels: see `PTQ`.
    """

    dps_images: int = 128
    dec_images: int = 512
    dec_cache: bool = True
    dec_quant: bool = True
    official_bias: bool = False
    official_divisors: bool = False
    artifact: str | None = None
    kernels: str = "simulated"

    def __post_init__(self) -> None:
        CachingConfig.__post_init__(self)
        PTQConfig.__post_init__(self)
        self._config(0, frozenset({0}))  # refuses what it refuses
        require_kernels(self.kernels, ptq_config(self))

    @property
    def arithmetic(self) -> str:
        return ARITHMETIC[self.kernels]

    @property
    def refresh_found_by_prepare(self) -> bool:
        return self.schedule == "dps"

    def _schedules(self) -> tuple[str, ...]:
        return (*super()._schedules(), "dps")

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        find_cut(skeleton(), self.cut_of(card))
        steps = len(sampler.timetable)
        self._config(self.cut_of(card), self.refresh(steps)).require_fits(steps)
        if sampler.placement.cached_steps == "full" and not (sampler.refresh or frozenset({0})).issuperset(sampler.corrected):
            raise ConfigError(
                "iec.cached_steps=full makes full calls at cached steps, and CacheQuant calibrates those steps for cached calls "
                "only: the deep layers have no activation scales there. Use iec.cached_steps=cached, or skip."
            )

    def refresh(self, num_steps: int) -> frozenset[int] | None:
        return None if self.refresh_found_by_prepare else self.steps_of(num_steps)

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        cut = self.cut_of(model.card)
        config = self._config(cut, self.refresh(len(table)))
        calibrated = prepare_cachequant(
            model.unet,
            config,
            table,
            model.card.shape,
            fingerprint=model_fingerprint(model),
            seed=CALIBRATION_SEED,
            artifacts=artifacts,
            artifact=None if self.artifact is None else user_path(self.artifact),
            batch_size=float_batch(model, config.ptq),
            cond=model.cond(range(config.images)),
            guidance=model.guidance,
        )
        network = calibrated.network
        cost = model_cost(model, weight_bytes(network.quantized), cut, config.ptq)
        if self.kernels != "simulated":
            quantized = with_kernels(network.quantized, self.kernels, artifacts)
            cached = CachedUNetNetwork(quantized.unet, cut)
            network = QuantizedNetwork(quantized, CorrectedCacheNetwork(cached, calibrated.tables))
        refresh = calibrated.refresh if self.refresh_found_by_prepare else None
        return Prepared(network, cost, refresh, own_weights=True, calibration_calls=config.calibration_calls(len(table)))

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        config = self._config(self.cut_of(card), self.refresh(num_steps))
        return {"technique": "cachequant", "cut": self.cut_of(card), **config.as_dict(), **kernels_identity(self.kernels)}

    def _config(self, cut: int | Kind, refresh: frozenset[int] | None) -> CacheQuantConfig:
        own = {f.name: getattr(self, f.name) for f in fields(CacheQuantConfig) if f.name not in ("cut", "ptq", "refresh")}
        return CacheQuantConfig(cut=cut, ptq=ptq_config(self), refresh=refresh, **own)
