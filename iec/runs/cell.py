"""A cell: one resolved configuration, checked as a whole before anything is loaded, with its identity and its folder."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from iec.efficiency.technique import Prepared, Technique, identity_of, technique_of
from iec.errors import ConfigError
from iec.io.files import canonical_hash
from iec.io.images import ROUNDINGS
from iec.io.runtime import resolve_device
from iec.io.wandb import check_logger
from iec.metrics.protocol import PROTOCOLS, protocol
from iec.models import Card
from iec.models.model import Source
from iec.runs.batches import micro_batches, require_count
from iec.sampling.correction import Correction
from iec.sampling.ddim import DDIM, Sampler
from iec.sampling.dtypes import SOLVER_DTYPES, dtype_name
from iec.sampling.multistep import with_solver
from iec.sampling.placement import Placement
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable

METRICS = ("auto", "none", *PROTOCOLS)


@dataclass(frozen=True)
class Cell:
    """model x efficiency x iec x sampler, how many images of it are wanted, and where they go.

    ``identity`` is everything that the bytes of an image depend on; num_images, metrics, logger and paths are not part of it,
    so that asking for more images or other scores continues the same cell.
    """

    config: DictConfig
    model: Source
    sampler: Solver
    technique: Technique
    num_images: int
    batch_size: int
    device: torch.device
    metrics: str

    @classmethod
    def from_config(cls, config: DictConfig) -> "Cell":
        """Raises `ConfigError`, `DeviceError` or `WeightsError` for whatever cannot be run."""
        technique, model = technique_of(config.efficiency), source_of(config.model)
        facts = model.card
        num_images = facts.num_images if config.num_images is None else config.num_images
        cell = cls(
            config=config,
            model=model,
            device=resolve_device(config.device),
            sampler=_sampler(config, facts, technique),
            technique=technique,
            num_images=num_images,
            batch_size=min(facts.batch_size, num_images) if config.batch_size is None else config.batch_size,
            metrics=_metrics(config, facts),
        )
        require_count(cell.num_images, cell.batch_size)
        check_logger(config.logger)
        if config.metrics.name not in METRICS:
            raise ConfigError(f"Unknown metrics {config.metrics.name!r}; choose one of {', '.join(METRICS)}.")
        if cell.metrics != "none" and config.metrics.scores is not None:
            protocol(cell.metrics).check(config.metrics.scores)
        if config.metrics.clip is not None and "text_encoder" not in facts.components:
            raise ConfigError(f"metrics.clip: {facts.name} has no prompts to compare its images with. Leave metrics.clip unset.")
        if config.metrics.bootstrap < 0 or (config.trace_images or 0) < 0:
            raise ConfigError("metrics.bootstrap and trace_images must not be negative.")
        if not 0 <= config.seed < 2**64:
            raise ConfigError(f"seed={config.seed} must be in 0 .. 2^64 - 1.")
        technique.check(facts, model.skeleton, cell.sampler)
        return cell

    def sampler_of(self, prepared: Prepared) -> Solver:
        """The sampler with the refresh steps, where `Technique.prepare` finds them."""
        if self.technique.refresh_found_by_prepare != (prepared.refresh is not None):
            raise ConfigError(
                f"efficiency={self.config.efficiency.name}: a technique gives its refresh steps either by refresh(), or, with "
                "refresh_found_by_prepare, with what prepare() returns; this one does both or neither."
            )
        return self.sampler if prepared.refresh is None else self.sampler.refreshed_at(prepared.refresh)

    @property
    def card(self) -> Card:
        return self.model.card

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def trace_images(self) -> int:
        """How many trajectories are kept; never more than images."""
        wanted = self.card.trace_images if self.config.trace_images is None else self.config.trace_images
        return min(wanted, self.num_images)

    @property
    def batches(self) -> list[tuple[int, ...]]:
        return micro_batches(self.num_images, self.batch_size)

    @property
    def identity(self) -> dict[str, Any]:
        sampler, correction = self.sampler, self.sampler.correction
        corrected: Any = sorted(sampler.corrected)
        placement = sampler.placement
        if corrected and self.technique.refresh_found_by_prepare:
            corrected = _plain(placement)  # it meets the refresh steps only when they are found
        elif sampler.refresh is not None and not sampler.refresh.issuperset(corrected):
            corrected = {"steps": corrected, "cached_steps": placement.cached_steps}
        identity: dict[str, Any] = {
            "model": self.model.identity,
            "efficiency": identity_of(self.technique, self.card, len(sampler.timetable)),
            "iec": {
                "corrected_steps": corrected,
                "correction": _plain(correction) if corrected else None,
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
        if sampler.solver != DDIM:
            identity["sampler"]["solver"] = sampler.solver
        if self.config.model.uint8 != "round":
            identity["uint8"] = self.config.model.uint8
        try:
            return json.loads(json.dumps(identity))  # as it comes back from a file: tuples become lists
        except TypeError as error:
            raise ConfigError(
                f"efficiency={self.config.efficiency.name}: {error}. Fields of a technique have to be JSON values: numbers, texts, "
                "lists."
            ) from error

    @property
    def slug(self) -> str:
        """Readable, with the hash of the identity at its end."""
        sampler = self.sampler
        words = [self.card.name, self.config.efficiency.name, "none"]
        if sampler.corrected:
            words[2] = "heun" if sampler.correction.evaluate_at == "s" else "iec"
            words.append(self.config.iec.placement)
        if sampler.solver != DDIM:
            words.append(sampler.solver)
        if sampler.epsilon_scale != 1:
            words.append(f"eps{sampler.epsilon_scale:g}")
        return "-".join([*words, f"T{len(sampler.timetable)}", f"seed{self.seed}", canonical_hash(self.identity)[:10]])

    @property
    def folder(self) -> Path:
        return Path(self.config.paths.cell or Path(self.config.paths.output) / self.slug)


def source_of(config: DictConfig) -> Source:
    """The model that the configuration group ``model`` means."""
    if config.uint8 not in ROUNDINGS:
        raise ConfigError(f"model.uint8={config.uint8}; choose {' or '.join(ROUNDINGS)}.")
    return Source.of(config.name, config.weights, config.random_weights, config.dtype, config.guidance, config.prompts)


def _metrics(config: DictConfig, facts: Card) -> str:
    """The protocol; ``auto`` is the card's, and none for random weights, whose images have no score worth computing."""
    if config.metrics.name != "auto":
        return config.metrics.name
    return "none" if config.model.random_weights and facts.packaged is None else facts.metrics


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: list(v) if isinstance(v := getattr(value, f.name), tuple) else v for f in fields(value)}


def _sampler(config: DictConfig, facts: Card, technique: Technique) -> Solver:
    options = config.sampler
    dtype = SOLVER_DTYPES[dtype_name(options.dtype, SOLVER_DTYPES, "sampler.dtype")]
    final = facts.final if options.final is None else options.final
    if options.timesteps is not None:
        if options.steps is not None or options.spacing is not None:
            raise ConfigError("sampler.timesteps is a whole timetable; leave sampler.steps and sampler.spacing unset with it.")
        table = Timetable.from_timesteps(list(options.timesteps), facts.schedule, final=final, eta=options.eta)
    else:
        spacing, steps = options.spacing or facts.spacing, facts.steps if options.steps is None else options.steps
        table = Timetable.spaced(spacing, steps, facts.schedule, final=final, eta=options.eta)
    ddim = Sampler(
        timetable=table,
        correction=_correction(config.iec),
        placement=_placement(config.iec),
        epsilon_scale=config.iec.epsilon_scale,
        refresh=technique.refresh(len(table)),
        dtype=dtype,
    )
    return with_solver(options.solver, ddim)


def _correction(iec: DictConfig) -> Correction:
    """The preset with what the configuration changes of it."""
    changes = {key: iec[key] for key in ("tolerance", "norm", "cache_from") if iec[key] is not None}
    if (given := iec["lambda"]) is not None:
        values = list(given) if isinstance(given, ListConfig) else [given]
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise ConfigError(f"iec.lambda={given} must be a number, or a list with one for each correction.")
        changes["lambdas"] = tuple(float(v) for v in values)
    return Correction.preset(iec.preset, iterations=iec.iterations, evaluate_at=iec.evaluate_at, **changes)


def _placement(iec: DictConfig) -> Placement:
    return Placement(iec.placement, iec.fraction, iec.count, tuple(iec.steps or ()), iec.cached_steps)
