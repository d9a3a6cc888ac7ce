"""The configuration schema: typed dataclasses that Hydra composes into, and refuses unknown keys with.

``null`` means "what the model's card says" (model, sampler, num_images, batch_size, trace_images) or "what the preset says" (iec).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from iec.correctors.affine import Affine
from iec.correctors.dcw import DCW
from iec.correctors.es import EpsilonScaling
from iec.correctors.es_search import EpsilonSearch
from iec.correctors.restart import Restart
from iec.correctors.stepback import Stepback
from iec.correctors.timeshift import TimeShift
from iec.correctors.unic import UniC
from iec.efficiency.added_errors import ErrorGain, ErrorNoise, ErrorRounding, ErrorSmooth, ErrorStale
from iec.efficiency.engine.technique import Engine
from iec.efficiency.technique import Technique
from iec.efficiency.techniques import PTQ, CacheQuant, DeepCache, FullPrecision
from iec.io.resources import configs
from iec.sampling.corrector import Corrector


@dataclass
class ModelConfig:
    """name: a card of iec/models/cards.yaml. weights: a local folder in diffusers' layout, ``hub`` or a hub id, instead of the
    packaged or converted one. dtype, channels_last, guidance, prompts, data: see `iec.models.source.Source`. compile: sample with
    the compiled network, see `iec.efficiency.compiled`. uint8: see `iec.io.images.to_uint8`.
    """

    name: str = MISSING
    weights: str | None = None
    random_weights: bool = False
    dtype: str = "float32"
    channels_last: bool = False
    compile: bool = False
    guidance: float | None = None
    prompts: str | None = None
    data: str | None = None
    uint8: str = "round"


def schema(cls: type) -> type:
    """The schema of a configuration that `instantiate` makes a ``cls`` from: its fields with their types and defaults, nested
    dataclasses as nested groups, and ``_target_``. A technique or a corrector also has a ``name``, which is its option's.
    """
    hints = get_type_hints(cls)
    columns: list[Any] = [("name", str, MISSING)] if issubclass(cls, Technique | Corrector) else []
    columns.append(("_target_", str, f"{cls.__module__}.{cls.__qualname__}"))
    for f in fields(cls):
        kind = hints[f.name]
        if is_dataclass(kind):
            nested = schema(kind)  # type: ignore[arg-type]  # a type, not an instance
            columns.append((f.name, nested, field(default_factory=nested)))
        else:
            columns.append((f.name, kind, f.default))
    return make_dataclass(f"{cls.__name__}Schema", columns)


@dataclass
class IECConfig:
    """See `iec.Correction`, `iec.Placement` and `iec.Sampler.epsilon_scale`. `iec_schema` adds ``lambda``, a word that Python keeps
    for itself: a number, or a list with one for each correction.
    """

    preset: str = "paper"
    placement: str = "none"
    fraction: float | None = None
    count: int | None = None
    steps: list[int] | None = None
    cached_steps: str = "skip"
    last_step: str = "correct"
    iterations: int | None = None
    tolerance: float | None = None
    norm: str | None = None
    cache_from: str | None = None
    evaluate_at: str = "t"
    epsilon_scale: float = 1.0
    renorm: bool = False


def iec_schema() -> DictConfig:
    """`IECConfig` with the key ``lambda``."""
    node: DictConfig = OmegaConf.structured(IECConfig)
    with open_dict(node):
        node["lambda"] = None
    return node


@dataclass
class SamplerConfig:
    """solver: ddim, or one of `iec.sampling.multistep`. timesteps: an explicit decreasing list, instead of steps and
    spacing. final: -1 is the clean image, 0 is abar(0).
    """

    solver: str = "ddim"
    steps: int | None = None
    spacing: str | None = None
    timesteps: list[int] | None = None
    final: int | None = None
    eta: float = 0.0
    dtype: str = "float64"


@dataclass
class MetricsConfig:
    """scores: names, null for the protocol's default. clip: a folder or hub id of a CLIP model, for the CLIP score of a text model.
    bootstrap: resamples behind each interval; 0 for no intervals. beside: other protocols that the same images are scored by, null
    for the default of `iec.metrics.protocol.Protocol.beside`, [] for none.
    """

    name: str = MISSING
    scores: list[str] | None = None
    clip: str | None = None
    bootstrap: int = 200
    beside: list[str] | None = None


@dataclass
class LoggerConfig:
    """group: of the run, null for the table's name where it is a row of one. mode: online or offline, null: see `iec.io.wandb`."""

    name: str = MISSING
    project: str = "iec"
    group: str | None = None
    mode: str | None = None


@dataclass
class PathsConfig:
    """output: root of all cells. artifacts: calibrations, shared by cells. cell: an explicit folder for this one cell."""

    output: str = MISSING
    artifacts: str = MISSING
    cell: str | None = None


@dataclass
class RunConfig:
    """shards, shard: the cell is split into so many tasks, and this is one of them, 0 .. shards - 1. devices: how many of this
    machine work on it at the same time. processes: on a CPU, a number or ``auto``: one a core. None of them is part of the cell,
    see `iec.runs.parallel`. threads: of each process, over which a CPU spreads one operation; other than 1 it is another cell.
    """

    model: Any = MISSING
    efficiency: Any = MISSING
    iec: Any = MISSING
    corrector: Any = MISSING
    sampler: Any = MISSING
    metrics: Any = MISSING
    logger: Any = MISSING
    paths: Any = MISSING
    num_images: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    processes: int | str = "auto"
    threads: int = 1
    shards: int = 1
    shard: int | None = None
    trace_images: int | None = None


@contextmanager
def composing() -> Iterator[Callable[[Iterable[str]], DictConfig]]:
    """Within the block: overrides -> the configuration that they make, which raises what Hydra raises."""
    register()
    with initialize_config_dir(str(configs()), version_base="1.3"):
        yield lambda overrides: compose("config", overrides=list(overrides))


def register() -> None:
    """Make the schemas known to Hydra; called by the entry points.

    They are outside of the groups, where they would be listed as options: an option of ``model`` begins with the default
    ``/model_schema@_here_``.
    """
    schemas = {
        "run": RunConfig,
        "model": ModelConfig,
        "none": schema(FullPrecision),
        "ptq": schema(PTQ),
        "deepcache": schema(DeepCache),
        "cachequant": schema(CacheQuant),
        "engine": schema(Engine),
        "error_rounding": schema(ErrorRounding),
        "error_gain": schema(ErrorGain),
        "error_noise": schema(ErrorNoise),
        "error_stale": schema(ErrorStale),
        "error_smooth": schema(ErrorSmooth),
        "iec": iec_schema(),
        "no_corrector": schema(Corrector),
        "affine": schema(Affine),
        "dcw": schema(DCW),
        "es": schema(EpsilonScaling),
        "es_search": schema(EpsilonSearch),
        "restart": schema(Restart),
        "stepback": schema(Stepback),
        "timeshift": schema(TimeShift),
        "unic": schema(UniC),
        "sampler": SamplerConfig,
        "metrics": MetricsConfig,
        "logger": LoggerConfig,
        "paths": PathsConfig,
    }
    for name, node in schemas.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=node)
