"""The calibration of CacheQuant: five stages in a fixed order, each kept on disk, and one file of all that they find."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.cachequant.config import CacheQuantConfig
from iec.efficiency.cachequant.dec import fit_cache, fit_quantization
from iec.efficiency.cachequant.dps import FeatureDistances, cheapest_refreshes
from iec.efficiency.cachequant.network import CacheTables, CorrectedCacheNetwork
from iec.efficiency.cachequant.trajectories import FloatRuns
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.integer import cached_network, integer_tensors, with_kernels
from iec.efficiency.quantization import CalibrationCall, QuantizedNetwork, QuantizedUNet, calibrate, quantize_unet, reconstruct
from iec.efficiency.quantization.artifact import calibration_tensors, fill_calibration
from iec.io.artifacts import artifact_path, cached, load_artifact
from iec.io.progress import reported, stage
from iec.models.unet import UNetNetwork
from iec.sampling.timetable import Timetable

KIND = "cachequant"


@dataclass(frozen=True)
class CacheQuant:
    """A calibrated network, to be sampled with ``Sampler(refresh=refresh)``.

    tables: of the cache correction; identity without one. path: the file that holds the calibration.
    """

    network: QuantizedNetwork
    refresh: frozenset[int]
    tables: CacheTables
    path: Path


@dataclass
class Calibration:
    """Of a CacheQuant network. The stages are each kept in a file that is named by what it depends on, so that configurations share
    them.

    runs: of the float UNet. fingerprint: what the UNet is, JSON values (model, hash of the weights). artifacts: the folder of
    calibrations and of their stages. Of the processes that need the same one, one makes it and the others wait.
    """

    runs: FloatRuns
    config: CacheQuantConfig
    fingerprint: dict[str, Any]
    artifacts: Path

    @classmethod
    def of(
        cls,
        unet: nn.Module,
        config: CacheQuantConfig,
        table: Timetable,
        shape: tuple[int, ...],
        *,
        fingerprint: dict[str, Any],
        seed: int,
        artifacts: Path,
        batch_size: int = 32,
        cond: Tensor | None = None,
        guidance: float | None = None,
    ) -> "Calibration":
        """For a float UNet and the steps of ``table``, on the device and in the dtype of ``unet``.

        shape: (C, H, W) of the network's input. seed: of the noise of the calibration images. batch_size: of the float runs; it
        changes the result by rounding only. cond: cond[n] conditions calibration image n; at least ``config.images`` of them.
        guidance: w of a guided model, see `iec.sampling.guidance`. Raises `ConfigError`.
        """
        config.require_fits(len(table), cond)
        network = CachedUNetNetwork(unet, config.cut, config.forecast.forecast_of(table.abar_t))
        return cls(FloatRuns(network, table, shape, seed, batch_size, cond, guidance), config, fingerprint, artifacts)

    def prepared(self, artifact: Path | None = None) -> CacheQuant:
        """The network, calibrated now or earlier. artifact: a calibration file that must be used. Raises `ArtifactError` for a file
        that is missing, damaged or was made from something else.
        """
        if artifact is not None:
            return self._assembled(load_artifact(artifact, KIND, self.depends), artifact)
        path = artifact_path(self.artifacts, KIND, self.depends)
        return self._assembled(cached(path, KIND, self.depends, self.run), path)

    def on(self, kernels: str, artifact: Path | None = None) -> tuple[QuantizedUNet, CacheTables]:
        """The UNet on its ``kernels`` (see `iec.efficiency.integer`) and the correction of the cache error. The integers are stored
        with that correction, and depend on what the calibration depends on. artifact: as of `prepared`.
        """
        if kernels == "simulated" or artifact is not None:
            simulated = self.prepared(artifact)
            return with_kernels(simulated.network.quantized, kernels, self.artifacts), simulated.tables

        def integers() -> dict[str, Tensor]:
            simulated = self.prepared()
            return integer_tensors(simulated.network.quantized) | simulated.tables.tensors()

        unet, steps, ptq = self.runs.network.module, len(self.runs.table), self.config.ptq
        quantized, stored = cached_network(unet, ptq, steps, kernels, self.artifacts, self.depends, integers)
        return quantized, CacheTables.of(stored)

    def _assembled(self, stored: dict[str, Tensor], path: Path) -> CacheQuant:
        quantized = self.quantized
        fill_calibration(quantized, _within(stored, "ptq."), path)
        tables = CacheTables.of(stored)
        for name, alpha in _within(stored, "alpha.").items():
            quantized.layers()[name].set_correction(alpha, stored[f"beta.{name}"])
        return CacheQuant(QuantizedNetwork(quantized, self.deployed(tables)), tables.refresh, tables, path)

    @cached_property
    def quantized(self) -> QuantizedUNet:
        """Without activation scales before the stages."""
        return quantize_unet(self.runs.network.module, self.config.ptq, len(self.runs.table))

    def run(self) -> dict[str, Tensor]:
        """All tensors of the calibration."""
        refresh = self.refresh_steps()
        tables = self.cache_tables(refresh)
        self.quantize(tables)
        config, tensors = self.config, {f"ptq.{name}": value for name, value in calibration_tensors(self.quantized).items()}
        tensors |= tables.tensors()
        if config.dec_quant:
            options = {"official_divisors": config.official_divisors, "official_bias": config.official_bias}
            found = fit_quantization(self.runs, self.quantized, tables, config.dec_images, **options)
            for name, (alpha, beta) in found.items():
                tensors |= {f"alpha.{name}": alpha, f"beta.{name}": beta}
        return tensors

    def refresh_steps(self) -> frozenset[int]:
        """Stage 1: the schedule. The distances are those of reused features, also where cached steps forecast theirs."""
        config, steps = self.config, len(self.runs.table)
        if config.refresh is not None:
            return config.refresh

        def make() -> dict[str, Tensor]:
            distances = FeatureDistances(steps, config.interval, self.runs.network.device)
            for call in self.runs.calls(config.dps_images, "refresh schedule"):
                distances.add(call.step.index, call.feature)
            return {"refresh": _steps(cheapest_refreshes(distances.table(), config.interval))}

        stored, _ = self._stage("schedule", {"interval": config.interval, "dps_images": config.dps_images}, make)
        return frozenset(stored["refresh"].tolist())

    def cache_tables(self, refresh: frozenset[int]) -> CacheTables:
        """Stage 2: the correction of the cache error."""
        if not self.config.dec_cache:
            return CacheTables.identity(refresh, len(self.runs.table), self.runs.network.cut.channels)

        def make() -> dict[str, Tensor]:
            tables = fit_cache(self.runs, refresh, self.config.dec_images, self.config.official_divisors)
            return {"a": tables.a, "b": tables.b}

        stored, _ = self._stage("cache", self._cache_fingerprint(refresh), make)
        return CacheTables(refresh, stored["a"], stored["b"])

    def quantize(self, tables: CacheTables) -> None:
        """Stages 3 and 4: activation scales and, if asked for, learned rounding, on the path that is sampled."""
        ptq, quantized, network = self.config.ptq, self.quantized, self.deployed(tables)
        calls = _Lazy(lambda: self.runs.calibration_calls(tables.refresh, ptq.calibration_images))
        fingerprint = {**self._cache_fingerprint(tables.refresh), "ptq": ptq.fingerprint()}

        def scales() -> dict[str, Tensor]:
            with stage("calibrating", len(self.runs.table)) as advance:
                calibrate(quantized, network, calls.value, lambda *_: advance())
            return calibration_tensors(quantized)

        fill_calibration(quantized, *self._stage("ptq", fingerprint, scales))
        if ptq.reconstruct == "none":
            return
        unet = self.runs.network.module
        units = artifact_path(self.artifacts, f"{KIND}-units", {**self.base, **fingerprint}).with_suffix("")  # a folder

        def rounding() -> dict[str, Tensor]:
            with reported("learning the rounding") as progress:  # a UNetNetwork takes no notice of the mode: always full
                reconstruct(quantized, network, unet, UNetNetwork(unet), calls.value, progress=progress, checkpoint=units)
            return calibration_tensors(quantized)

        fill_calibration(quantized, *self._stage("rounding", fingerprint, rounding))

    def deployed(self, tables: CacheTables) -> CorrectedCacheNetwork:
        """How the quantized UNet is evaluated, in calibration and in sampling."""
        return CorrectedCacheNetwork(CachedUNetNetwork(self.quantized.unet, self.config.cut, self.runs.network.forecast), tables)

    @property
    def depends(self) -> dict[str, Any]:
        """What the whole calibration depends on, and all that is made of it."""
        return {**self.base, "cachequant": self.config.as_dict()}

    @cached_property
    def base(self) -> dict[str, Any]:
        """What every stage depends on."""
        runs = self.runs
        return {
            **self.fingerprint,
            **runs.table.fingerprint(),
            "noise_schedule": asdict(runs.table.schedule),
            "shape": list(runs.shape),
            "cut": runs.network.cut.index,
            "dtype": str(runs.network.dtype),
            "seed": runs.seed,
            "cond": None if runs.cond is None else _digest(runs.cond[: self.config.images]),
        }

    def _cache_fingerprint(self, refresh: frozenset[int]) -> dict[str, Any]:
        """Of the features that cached calls get."""
        fitted = {"dec_images": self.config.dec_images, "official_divisors": self.config.official_divisors}
        forecast = self.config.forecast.forecast_identity()
        return {"refresh": sorted(refresh), "dec_cache": fitted if self.config.dec_cache else None, **forecast}

    def _stage(
        self, name: str, fingerprint: dict[str, Any], make: Callable[[], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Path]:
        """A stage's tensors and its file, which is made if it is not there."""
        kind, fingerprint = f"{KIND}-{name}", {**self.base, **fingerprint}
        path = artifact_path(self.artifacts, kind, fingerprint)
        return cached(path, kind, fingerprint, make), path


class _Lazy:
    """Calls that are made when a stage needs them, once for both stages."""

    def __init__(self, make: Callable[[], list[CalibrationCall]]) -> None:
        self._make = make

    @cached_property
    def value(self) -> list[CalibrationCall]:
        return self._make()


def _within(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def _steps(refresh: frozenset[int]) -> Tensor:
    return torch.tensor(sorted(refresh), dtype=torch.int64)


def _digest(cond: Tensor) -> str:
    """sha256 of the values, dtype and shape."""
    data = cond.detach().cpu().contiguous()
    header = f"{data.dtype}{list(data.shape)}".encode()
    return hashlib.sha256(header + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
