"""A cell: one resolved configuration, checked as a whole before anything is loaded, with its identity and its folder."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from iec.correctors import configured
from iec.efficiency.compiled import require_compiles
from iec.efficiency.technique import Prepared, Technique, identity_of, technique_of
from iec.errors import ConfigError
from iec.io.files import as_stored, canonical_hash
from iec.io.images import ROUNDINGS
from iec.io.runtime import resolve_device
from iec.io.wandb import Logger, check_logger
from iec.models import Card
from iec.models.source import Source
from iec.runs.batches import micro_batches, require_count
from iec.runs.metrics import Metrics
from iec.runs.parallel import Share, Split
from iec.runs.paths import Paths, with_home
from iec.runs.solver import solver_of
from iec.sampling.correction import Correction
from iec.sampling.corrector import NO_CORRECTOR
from iec.sampling.ddim import DDIM
from iec.sampling.noise import require_key
from iec.sampling.solver import Solver


@dataclass(frozen=True)
class Cell:
    """model x efficiency x iec x corrector x sampler, how many images of it are asked for, and where they go.

    config: the whole configuration, to be written, logged and handed to workers; what it says is read from the other fields.
    uint8: see `iec.io.images.to_uint8`. compile: see `iec.efficiency.compiled`. efficiency: the technique's name. trace_images: how
    many trajectories are kept, at most num_images. share, split: of the work, see `iec.runs.parallel`. metrics: None without
    scores.

    ``identity`` is everything that the bytes of an image depend on; num_images, metrics, logger, paths and how the work is split
    are not part of it, so that asking for more images or other scores continues the same cell.
    """

    config: DictConfig
    model: Source
    uint8: str
    compile: bool
    sampler: Solver
    efficiency: str
    technique: Technique
    num_images: int
    batch_size: int
    trace_images: int
    seed: int
    device: torch.device
    share: Share
    split: Split
    metrics: Metrics | None
    logger: Logger
    paths: Paths

    @classmethod
    def from_config(cls, config: DictConfig) -> "Cell":
        """Raises `ConfigError`, `DeviceError`, `WeightsError` or `DatasetError` for whatever cannot be run."""
        config = with_home(config)
        technique, model, device = technique_of(config.efficiency), source_of(config.model), resolve_device(config.device)
        card = model.card
        num_images = card.num_images if config.num_images is None else config.num_images
        trace_images = card.trace_images if config.trace_images is None else config.trace_images
        cell = cls(
            config=config,
            model=model,
            uint8=config.model.uint8,
            compile=bool(config.model.get("compile")),
            sampler=solver_of(config, card, technique),
            efficiency=config.efficiency.name,
            technique=technique,
            num_images=num_images,
            batch_size=min(card.batch_size, num_images) if config.batch_size is None else config.batch_size,
            trace_images=min(trace_images, num_images),
            seed=config.seed,
            device=device,
            share=Share.of(config),
            split=Split.of(config, device),
            metrics=Metrics.of(config.metrics, card, config.model.random_weights),
            logger=Logger(**config.logger),
            paths=Paths.of(config.paths),
        )
        require_count(cell.num_images, cell.batch_size)
        check_logger(cell.logger)
        if trace_images < 0:
            raise ConfigError(f"trace_images={trace_images} must not be negative.")
        require_key("seed", cell.seed)
        if cell.compile:
            require_compiles(technique, card, cell.sampler)
        technique.check(card, model.skeleton, cell.sampler)
        return cell

    def sampler_of(self, prepared: Prepared) -> Solver:
        """The sampler with the refresh steps, where `Technique.prepare` finds them."""
        if self.technique.refresh_found_by_prepare != (prepared.refresh is not None):
            raise ConfigError(
                f"efficiency={self.efficiency}: a technique gives its refresh steps either by refresh(), or, with "
                "refresh_found_by_prepare, with what prepare() returns; this one does both or neither."
            )
        return self.sampler if prepared.refresh is None else self.sampler.refreshed_at(prepared.refresh)

    @property
    def card(self) -> Card:
        return self.model.card

    @property
    def batches(self) -> list[tuple[int, ...]]:
        return micro_batches(self.num_images, self.batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        sampler = self.sampler
        corrected: Any = sorted(sampler.corrected)
        placement = sampler.placement
        if corrected and self.technique.refresh_found_by_prepare:
            corrected = _plain(placement)  # it meets the refresh steps only when they are found
            if placement.last_step == "correct":
                del corrected["last_step"]  # cells from before there was a choice keep their identity
        elif sampler.refresh is not None and not sampler.refresh.issuperset(corrected):
            corrected = {"steps": corrected, "cached_steps": placement.cached_steps}
        identity: dict[str, Any] = {
            "model": self.model.identity,
            "efficiency": self.technique_identity,
            "iec": {
                "corrected_steps": corrected,
                "correction": _correction_identity(sampler.correction) if corrected else None,
                "epsilon_scale": sampler.epsilon_scale,
            },
            "sampler": {
                "pairs": [list(pair) for pair in sampler.timetable.pairs],
                "eta": sampler.timetable.eta,
                "dtype": str(sampler.dtype).removeprefix("torch."),
            },
            "seed": self.seed,
            "batch_size": self.batch_size,
            "device": self.device.type,
        }
        if sampler.corrector != NO_CORRECTOR:
            identity["corrector"] = configured.identity_of(sampler.corrector)
        if sampler.solver != DDIM:
            identity["sampler"]["solver"] = sampler.solver
        if self.uint8 != "round":
            identity["uint8"] = self.uint8
        if self.compile:
            identity["compile"] = True
        if self.split.threads not in (None, 1):
            identity["threads"] = self.split.threads
        try:
            return as_stored(identity)
        except TypeError as error:
            raise ConfigError(
                f"efficiency={self.efficiency}, corrector={self.config.corrector.name}: {error}. Fields of a technique and of a "
                "corrector have to be JSON values: numbers, texts, lists."
            ) from error

    @property
    def technique_identity(self) -> dict[str, Any]:
        """What tells its network from any other of the model."""
        return identity_of(self.technique, self.card, len(self.sampler.timetable))

    @property
    def technique_name(self) -> str:
        """The technique, and whether it computes on integers."""
        return f"{self.efficiency}-int8" if self.technique.arithmetic.startswith("int8") else self.efficiency

    @property
    def correction_name(self) -> str:
        """Of what calls the network again: none, iec or heun."""
        if not self.sampler.corrected:
            return "none"
        return "heun" if self.sampler.correction.evaluate_at == "s" else "iec"

    @property
    def corrector_name(self) -> str:
        """Of what corrects without a call; empty for nothing."""
        corrector = self.sampler.corrector
        return "" if corrector == NO_CORRECTOR else corrector.label(self.config.corrector.name)

    @property
    def slug(self) -> str:
        """Readable, with the hash of the identity at its end."""
        sampler = self.sampler
        technique = f"{self.technique_name}-compiled" if self.compile else self.technique_name
        words = [self.card.name, technique, self.correction_name]
        if sampler.corrected:
            words.append(sampler.placement.kind)
            if sampler.correction.renorm:
                words.append("renorm")
        if sampler.solver != DDIM:
            words.append(sampler.solver)
        if self.corrector_name:
            words.append(self.corrector_name)
        if sampler.epsilon_scale != 1:
            words.append(f"eps{sampler.epsilon_scale:g}")
        return "-".join([*words, f"T{len(sampler.timetable)}", f"seed{self.seed}", canonical_hash(self.identity)[:10]])

    @property
    def artifacts(self) -> Path:
        """Of its calibrations, whose last bits depend on the number of threads, too."""
        threads = self.split.threads
        return self.paths.artifacts if threads in (None, 1) else self.paths.artifacts / f"threads{threads}"

    @property
    def folder(self) -> Path:
        return self.paths.cell or self.paths.output / self.slug


def source_of(config: DictConfig) -> Source:
    """The model that the configuration group ``model`` means."""
    if config.uint8 not in ROUNDINGS:
        raise ConfigError(f"model.uint8={config.uint8}; choose {' or '.join(ROUNDINGS)}.")
    given = {key: config.get(key) for key in ("dtype", "guidance", "prompts", "data")}
    return Source.of(config.name, config.weights, config.random_weights, channels_last=bool(config.get("channels_last")), **given)


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: list(v) if isinstance(v := getattr(value, f.name), tuple) else v for f in fields(value)}


def _correction_identity(correction: Correction) -> dict[str, Any]:
    identity = _plain(correction)
    if not correction.renorm:
        del identity["renorm"]  # cells from before there was a choice keep their identity
    return identity
