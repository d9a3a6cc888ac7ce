"""Model cards: the facts about each model that are not code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from iec.errors import ConfigError, MismatchError
from iec.io.yaml import read_yaml
from iec.sampling.timetable import NoiseSchedule

FOLDER = Path(__file__).parent
FOR_PEOPLE = {"data", "training", "limits"}
"""What cards.yaml says of a model in words alone."""
Kind = Literal[
    "UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "VQModel", "AutoencoderKL", "CLIPTextModel", "Embedding"
]


@dataclass(frozen=True)
class Component:
    """One module of a model; name: its folder in diffusers' pipeline layout.

    config: of the class ``kind``, over the class's defaults; empty where it lies beside the weights. heads: attention heads of
    every layer, where a configuration cannot say it.
    """

    name: str
    kind: Kind
    parameters: int
    config: Mapping[str, Any] = field(default_factory=dict)
    heads: int | None = None


@dataclass(frozen=True)
class Original:
    """The authors' checkpoint. file: its usual name. member: the path inside ``url``, an archive. layout, ema: see cards.yaml."""

    layout: Literal["ddpm", "ldm"]
    file: str
    url: str
    ema: bool
    member: str | None = None
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub in diffusers' layout."""

    repository: str
    revision: str | None = None


@dataclass(frozen=True)
class Packaged:
    """Weights (of an ideal model: images) that the package carries: a folder beside the cards, and the sha256 of the one file of
    them in it.
    """

    folder: str
    sha256: str


@dataclass(frozen=True)
class Card:
    """One model of ``cards.yaml``, which says what the entries mean.

    shape: (C, H, W) of the network's input. spacing, steps, final: how the paper samples it (`Timetable`). guidance: w of
    classifier-free guidance, None without one. metrics: the protocol its scores are reported with. reference: the statistics it is
    compared with. resolution: of its images. cut: where DeepCache cuts models of its kind. num_images, batch_size, trace_images:
    defaults of a run. dataset: of an ideal model (`iec.models.ideal`), which denoises its training images and has no components;
    None for a trained one. wrong: what is often taken for the weights and is not, with the reason.
    """

    name: str
    description: str
    licence: str
    components: Mapping[str, Component]
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
    trace_images: int
    guidance: float | None = None
    dataset: Literal["fashion_mnist", "cifar10"] | None = None
    packaged: Packaged | None = None
    original: Original | None = None
    hub: Hub | None = None
    wrong: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None
    memory: Mapping[int, float] | None = None

    @property
    def predictor(self) -> Component:
        """What predicts the noise: a UNet or a transformer. An ideal model has none."""
        return self.components["transformer" if "transformer" in self.components else "unet"]

    @property
    def takes_labels(self) -> bool:
        """Whether the network is told the number of a class, and embeds it itself."""
        return "transformer" in self.components

    @property
    def decoder(self) -> Component | None:
        """Of a latent model."""
        return self.components.get("vqvae") or self.components.get("vae")

    @property
    def tokens(self) -> tuple[int, int] | None:
        """(tokens, width) of the conditioning of one image; None for an unconditional model, and for one that takes labels."""
        if "class_embedding" in self.components:
            return 1, self.components["class_embedding"].config["embedding_dim"]
        if "text_encoder" in self.components:
            config = self.components["text_encoder"].config
            return config["max_position_embeddings"], config["hidden_size"]
        return None

    @property
    def parameters(self) -> int:
        """Of all components."""
        return sum(component.parameters for component in self.components.values())


def require_network(card: Card) -> None:
    """Raises `MismatchError` for an ideal model, which has no layers."""
    if card.dataset is not None:
        raise MismatchError(
            f"{card.name} is a closed formula, with no UNet to quantize or to cache. Use efficiency=none or an added error "
            "(efficiency=error_rounding), or a trained model, e.g. model=ddim_cifar_small."
        )


def require_unet(card: Card) -> None:
    """Raises `MismatchError` for an ideal model and for a transformer."""
    if "transformer" in card.components:
        raise MismatchError(
            f"{card.name} is a transformer: it has no skip connection to cache at, and only UNets are exported. Use "
            "efficiency=none, a quantization (efficiency=w8a8) or an added error (efficiency=error_rounding), or a model with a "
            "UNet, e.g. model=ddim_cifar_small."
        )
    require_network(card)


@cache
def _cards() -> dict[str, dict[str, Any]]:
    return read_yaml(FOLDER / "cards.yaml")["models"]


def card_names() -> tuple[str, ...]:
    return tuple(_cards())


def card(name: str) -> Card:
    """The card of a model. Raises `ConfigError` for a name that has none."""
    if name not in _cards():
        raise ConfigError(f"Unknown model {name!r}; the cards know {', '.join(_cards())}.")
    entry = dict(_cards()[name])
    entry |= entry.pop("sampler")
    entry["components"] = {key: Component(key, **value) for key, value in entry["components"].items()}
    entry |= {"description": entry["description"].strip(), "shape": tuple(entry["shape"])}
    for key, kind in {"schedule": NoiseSchedule, "packaged": Packaged, "original": Original, "hub": Hub}.items():
        if entry.get(key) is not None:
            entry[key] = kind(**entry[key])
    return Card(name=name, **{key: value for key, value in entry.items() if key not in FOR_PEOPLE})
