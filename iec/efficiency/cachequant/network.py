"""The correction of the cache error, and the network that applies it."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from iec.efficiency.caching import CachedUNetNetwork
from iec.errors import ArtifactError, ConfigError
from iec.sampling.network import Compiler, FeatureCache, Prediction, Step


@dataclass(frozen=True)
class CacheTables:
    """F_i ~ a_i F_s + b_i: what the cached step i gets in place of F_s, the feature of s, the last refresh step before it, or of
    what is forecast from the features of the last ones.

    refresh: the refresh steps S, with 0 among them. a, b: [T, C]; a = 1 and b = 0 at the steps of S.
    """

    refresh: frozenset[int]
    a: Tensor
    b: Tensor

    @classmethod
    def identity(cls, refresh: frozenset[int], num_steps: int, channels: int) -> "CacheTables":
        """No correction: plain reuse of the feature."""
        return cls(refresh, torch.ones(num_steps, channels), torch.zeros(num_steps, channels))

    @classmethod
    def of(cls, stored: dict[str, Tensor]) -> "CacheTables":
        """Of a file that holds the `tensors` of one."""
        return cls(frozenset(stored["refresh"].tolist()), stored["cache.a"], stored["cache.b"])

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored."""
        return {"refresh": torch.tensor(sorted(self.refresh), dtype=torch.int64), "cache.a": self.a, "cache.b": self.b}

    def to(self, device: torch.device | str) -> "CacheTables":
        return CacheTables(self.refresh, self.a.to(device), self.b.to(device))

    def source(self, i: int) -> int:
        """s(i), the last refresh step up to i."""
        return max(s for s in self.refresh if s <= i)

    def apply(self, i: int, feature: Tensor) -> Tensor:
        """a_i F + b_i for F [B, C, h, w], in F's dtype (computed in float32 at least)."""
        dtype = torch.promote_types(feature.dtype, torch.float32)
        a, b = (table[i].to(dtype)[:, None, None] for table in (self.a, self.b))
        return (a * feature.to(dtype) + b).to(feature.dtype)


class CorrectedCacheNetwork:
    """A caching network whose cached calls at step i get a_i F + b_i; full calls pass through.

    Every stored feature is corrected. The weights of a forecast have the sum 1, so that this corrects what is forecast.

    Inside ``QuantizedNetwork(quantized, network)`` this is the network of CacheQuant. The tables hold for the schedule they were
    fitted to: sample with ``Sampler(refresh=tables.refresh)``. Raises `ConfigError` for cached calls of another schedule, and
    `ArtifactError` for a step that has none.
    """

    def __init__(self, network: CachedUNetNetwork, tables: CacheTables) -> None:
        if tables.a.shape[1] != network.cut.channels:
            raise ConfigError(
                f"The cache correction is for {tables.a.shape[1]} channels and cut {network.cut.index} has {network.cut.channels}. "
                "Use the cut it was fitted at, or fit it again."
            )
        self.network, self.tables = network, tables.to(network.device)
        self.skipped = network.skipped

    def compiled(self, compiler: Compiler) -> "CorrectedCacheNetwork":
        """See `Compilable`."""
        return CorrectedCacheNetwork(self.network.compiled(compiler), self.tables)

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        steps = len(self.tables.a)
        if not 0 <= step.index < steps:
            raise ArtifactError(
                f"Sampling step {step.index} has no cache correction; it was fitted for steps 0 .. {steps - 1}. "
                "Calibrate for the timetable that is sampled."
            )
        if step.mode == "cached" and cache is not None:
            self._require_schedule(step.index, cache.step.index)
            cache = cache.changed(partial(self.tables.apply, step.index), probes=False)
        return self.network(x, step, cond, cache)

    def _require_schedule(self, i: int, origin: int) -> None:
        if i in self.tables.refresh or origin != self.tables.source(i):
            raise ConfigError(
                f"A cached call at step {i} with the feature of step {origin} does not belong to the refresh steps "
                f"{sorted(self.tables.refresh)} that the cache correction was fitted to. Sample with these refresh steps "
                "and let no full correction replace the feature in between (iec.cached_steps=skip), or calibrate with the others."
            )
