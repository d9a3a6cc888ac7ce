"""Model cards: the facts about each model that are not code."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from iec.errors import ConfigError
from iec.timetable import NoiseSchedule

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """One model of ``cards.yaml``.

    shape: (C, H, W) of the network's input. spacing, steps, final: how the paper samples it (`Timetable`). sha256: of the weights
    file. metrics: the protocol its scores are reported with. reference: the statistics it is compared with. resolution: of its
    images. cut: where DeepCache cuts models of its kind. num_images, batch_size: defaults of a run.
    """

    name: str
    description: str
    parameters: int
    folder: str
    sha256: str
    shape: tuple[int, ...]
    schedule: NoiseSchedule
    spacing: str
    steps: int
    final: int
    metrics: str
    reference: str
    resolution: int
    cut: Literal["pixel", "latent"]
    num_images: int
    batch_size: int


@cache
def _cards() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((FOLDER / "cards.yaml").read_text(encoding="utf-8"))


def card(name: str) -> Card:
    """The card of a model. Raises `ConfigError` for a name that has none."""
    if name not in _cards():
        raise ConfigError(f"Unknown model {name!r}; the cards know {', '.join(_cards())}.")
    entry = _cards()[name]
    return Card(
        name=name,
        description=entry["description"].strip(),
        parameters=entry["parameters"],
        folder=entry["folder"],
        sha256=entry["sha256"],
        shape=tuple(entry["shape"]),
        schedule=NoiseSchedule(**entry["schedule"]),
        metrics=entry["metrics"],
        reference=entry["reference"],
        resolution=entry["resolution"],
        cut=entry["cut"],
        num_images=entry["num_images"],
        batch_size=entry["batch_size"],
        **entry["sampler"],
    )
