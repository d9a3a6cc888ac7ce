"""The techniques of the paper: none, post-training quantization, DeepCache, CacheQuant."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from iec.efficiency.cachequant import CacheQuantConfig, Calibration, CorrectedCacheNetwork
from iec.efficiency.caching import CachedUNetNetwork, Kind, find_cut
from iec.efficiency.caching.config import SCHEDULES, CachingConfig
from iec.efficiency.cost import ideal_cost, model_cost
from iec.efficiency.integer import ARITHMETIC, require_kernels, require_machine
from iec.efficiency.planning.plan import planned
from iec.efficiency.prepare import CALIBRATION_SEED, calibration_calls, float_batch, model_fingerprint, quantize
from iec.efficiency.quantization import PTQConfig, QuantizedNetwork, weight_bytes
from iec.efficiency.technique import FIRST, Prepared, Technique
from iec.errors import ConfigError
from iec.io.artifacts import require_there
from iec.io.paths import user_path
from iec.models import Card, Model
from iec.models.cards import require_network
from iec.models.ideal import IdealNetwork
from iec.models.unet import parameter_bytes
from iec.sampling.ddim import Sampler
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable


@dataclass(frozen=True)
class FullPrecision(Technique):
    """The model as it is."""

    def require_compiles(self) -> None:
        """It has a compiled form."""

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        network = model.network
        if isinstance(network, IdealNetwork):
            return Prepared(network, cost=ideal_cost(network))
        return Prepared(network, cost=model_cost(model, parameter_bytes(model.unet)))


class Quantizing(PTQConfig, Technique):
    """A technique that quantizes.

    kernels: ``simulated`` computes in float arithmetic on the grid, ``int8`` on integers, with compiled passes between them,
    ``int8_unfused`` without; see `iec.efficiency.integer`.
    """

    kernels: str
    artifact: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kernels(self.kernels, self.ptq)

    def require_artifact(self) -> None:
        """Raises `ArtifactError` for a calibration file that is not there."""
        if self.artifact is not None:
            require_there(user_path(self.artifact))

    @property
    def ptq(self) -> PTQConfig:
        """The quantization alone."""
        return PTQConfig(**{f.name: getattr(self, f.name) for f in fields(PTQConfig)})

    @property
    def arithmetic(self) -> str:
        return ARITHMETIC[self.kernels]

    @property
    def kernels_identity(self) -> dict[str, Any]:
        """Cells from before there was a choice keep their identity."""
        return {} if self.kernels == "simulated" else {"kernels": self.kernels}

    def require_compiles(self) -> None:
        """Raises `ConfigError` for integer kernels."""
        if self.kernels != "simulated":
            raise ConfigError(
                f"model.compile=true: efficiency.kernels={self.kernels} has kernels of its own, which torch.compile does not see "
                "into. Use model.compile=false, or efficiency.kernels=simulated."
            )


@dataclass(frozen=True)
class PTQ(Quantizing):
    """Post-training quantization. artifact: a calibration file to use instead of one in the artifacts folder. kernels: see
    `Quantizing`.
    """

    artifact: str | None = None
    kernels: str = "simulated"

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        require_network(card)
        self.require_artifact()

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        network = quantize(model, self.ptq, table, artifacts=artifacts, artifact=self.artifact, kernels=self.kernels)
        cost = model_cost(model, weight_bytes(network.quantized), config=self.ptq)
        return Prepared(network, cost, own_weights=True, calibration_calls=calibration_calls(self.ptq, table))

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """Without the artifact: one of another configuration is refused."""
        return {"technique": "ptq", **self.fingerprint(), **self.kernels_identity}


def prepare_planned(technique: "DeepCache | CacheQuant", model: Model, table: Timetable, artifacts: Path) -> Prepared:
    """What the technique prepares for the refresh steps of its plan, which is made for the float model."""
    config = technique.plan(len(table))
    assert config is not None  # of schedule=planned alone
    network = CachedUNetNetwork(model.unet, technique.cut_of(model.card), technique.forecast_of(table.abar_t))
    plan = planned(model, network, table, config, artifacts, technique.forecast_identity())
    prepared = technique.at(plan.refresh).prepare(model, table, artifacts)
    calls = prepared.calibration_calls
    return replace(prepared, refresh=plan.refresh, calibration_calls=None if calls is None else calls + plan.calls.total)


@dataclass(frozen=True)
class DeepCache(CachingConfig, Technique):
    """DeepCache (arXiv 2312.00858): steps between two refreshes reuse the deep feature of the last full call, or forecast it."""

    @property
    def refresh_found_by_prepare(self) -> bool:
        return self.schedule == "planned"

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        find_cut(skeleton(), self.cut_of(card))
        self.plan(len(sampler.timetable))  # refuses what T does not have

    def refresh(self, num_steps: int) -> frozenset[int] | None:
        if self.adaptive is not None:
            return FIRST
        return None if self.refresh_found_by_prepare else self.steps_of(num_steps)

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        if self.schedule == "planned":
            return prepare_planned(self, model, table, artifacts)
        cut = self.cut_of(model.card)
        forecast = self.forecast_of(table.abar_t)
        history = 0 if self.adaptive is None else self.adaptive.history
        cost = model_cost(model, parameter_bytes(model.unet), cut, forecast=forecast, history=history)
        return Prepared(CachedUNetNetwork(model.unet, cut, forecast), cost)

    def require_compiles(self) -> None:
        """Raises `ConfigError` for adaptive refresh."""
        if self.adaptive is not None:
            raise ConfigError(
                "model.compile=true: with efficiency.schedule=adaptive the images of a batch refresh apart, in batches of any "
                "size. Use model.compile=false, or another schedule, e.g. efficiency.schedule=uniform."
            )

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """By the refresh steps, or what finds them."""
        plan, refresh = self.plan(num_steps), self.refresh(num_steps)
        found: Any = {"planned": plan.as_dict()} if plan is not None else sorted(refresh or ())
        if self.adaptive is not None:
            found = {"adaptive": asdict(self.adaptive)}
        return {"technique": "deepcache", "refresh": found, "cut": self.cut_of(card), **self.forecast_identity()}


@dataclass(frozen=True)
class CacheQuant(CachingConfig, Quantizing):
    """Feature caching and quantization together (arXiv 2503.01323); the fields after those of both: `CacheQuantConfig`.

    schedule: also ``dps``: refresh steps found by dynamic programming on the model's features. ``planned``: those planned for the
    float model, for which all else is then calibrated. artifact: see `PTQ`. kernels: see `Quantizing`.
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
        if self.schedule == "adaptive":
            raise ConfigError(
                "CacheQuant calibrates each step for the one kind of call that all images make there, and with "
                "efficiency.schedule=adaptive each image decides. Use efficiency.schedule=planned or dps, or efficiency=deepcache."
            )
        CachingConfig.__post_init__(self)
        Quantizing.__post_init__(self)
        self._config(0, FIRST)  # refuses what it refuses

    @property
    def refresh_found_by_prepare(self) -> bool:
        return self.schedule in ("dps", "planned")

    def _schedules(self) -> tuple[str, ...]:
        return (*SCHEDULES, "planned", "dps")

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        find_cut(skeleton(), self.cut_of(card))
        self.require_artifact()
        steps = len(sampler.timetable)
        self.plan(steps)  # refuses what T does not have
        self._config(self.cut_of(card), self._refresh_before_prepare(steps)).require_fits(steps)
        if (sampler if sampler.refresh is not None else sampler.refreshed_at(FIRST)).full_at_cached_steps:
            raise ConfigError(
                "iec.cached_steps=full makes full calls at cached steps, and CacheQuant calibrates those steps for cached calls "
                "only: the deep layers have no activation scales there. Use iec.cached_steps=cached, or skip."
            )
        if self.forecasts and isinstance(sampler, Sampler) and any(sampler.corrector.restarts(i, sampler) for i in range(steps)):
            raise ConfigError(
                "corrector=restart goes back to a refresh step without the features before it, and CacheQuant calibrates what is "
                "forecast from them. Use efficiency.forecast=none, or another corrector."
            )

    def refresh(self, num_steps: int) -> frozenset[int] | None:
        return None if self.refresh_found_by_prepare else self.steps_of(num_steps)

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        require_machine(self.kernels, model.device, artifacts)  # before a plan, which takes longer
        if self.schedule == "planned":
            return prepare_planned(self, model, table, artifacts)
        cut = self.cut_of(model.card)
        config = self._config(cut, self.refresh(len(table)))
        artifact = None if self.artifact is None else user_path(self.artifact)
        quantized, tables = self._calibration(config, model, table, artifacts).on(self.kernels, artifact)
        forecast = self.forecast_of(table.abar_t)
        cost = model_cost(model, weight_bytes(quantized), cut, config.ptq, forecast)
        network = QuantizedNetwork(quantized, CorrectedCacheNetwork(CachedUNetNetwork(quantized.unet, cut, forecast), tables))
        refresh = tables.refresh if self.refresh_found_by_prepare else None
        return Prepared(network, cost, refresh, own_weights=True, calibration_calls=config.calibration_calls(len(table)))

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        plan, cut = self.plan(num_steps), self.cut_of(card)
        config = self._config(cut, self._refresh_before_prepare(num_steps))
        identity = {"technique": "cachequant", "cut": cut, **config.as_dict(), **self.kernels_identity}
        return identity if plan is None else identity | {"refresh": {"planned": plan.as_dict()}}

    def _refresh_before_prepare(self, num_steps: int) -> frozenset[int] | None:
        """The refresh steps; {0} stands for those of a plan, which the calibration takes as given; None: it finds them."""
        return FIRST if self.schedule == "planned" else self.refresh(num_steps)

    def _calibration(self, config: CacheQuantConfig, model: Model, table: Timetable, artifacts: Path) -> Calibration:
        return Calibration.of(
            model.unet,
            config,
            table,
            model.card.shape,
            fingerprint=model_fingerprint(model),
            seed=CALIBRATION_SEED,
            artifacts=artifacts,
            batch_size=float_batch(model, config.ptq),
            cond=model.cond(range(config.images)),
            guidance=model.guidance,
        )

    def _config(self, cut: int | Kind, refresh: frozenset[int] | None) -> CacheQuantConfig:
        parts = ("cut", "ptq", "refresh", "forecast")
        own = {f.name: getattr(self, f.name) for f in fields(CacheQuantConfig) if f.name not in parts}
        return CacheQuantConfig(cut=cut, ptq=self.ptq, refresh=refresh, forecast=self.forecast_config(), **own)
