"""Which model is meant, and loading it: strictly, or with random weights."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iec.errors import ConfigError
from iec.io.paths import user_path
from iec.io.runtime import resolve_device
from iec.models import dataset
from iec.models.architecture import DIFFUSERS, build, fill_computed
from iec.models.cards import Card, Component, card, require_unet
from iec.models.conditioning import ClassLabels, Conditioner, LabelNumbers, Prompts
from iec.models.decoder import Decoder
from iec.models.files import weights_files
from iec.models.ideal import IdealNetwork
from iec.models.model import Model
from iec.models.prompts import prompts_of
from iec.models.text import TextEncoder, load_tokenizer
from iec.models.weights import component_folder, config_of, configuration_hash, digest, fill, find, is_packaged
from iec.sampling.dtypes import dtype_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """Which model is meant: all that decides what `load` makes, checked.

    folder: of its weights, None for random ones of the card's architecture. guidance: w, None for a model without. prompts: where
    the prompts of a text model come from, see `iec.models.prompts.prompts_of`. dtype: of UNet and text encoder; the decoder
    stays in float32. channels_last: the order in memory of the UNet's convolutions, and so of what they compute. data: the folder
    of an ideal model's data set, None for the images that the package carries.
    """

    card: Card
    folder: Path | None
    random_weights: bool = False
    dtype: str = "float32"
    guidance: float | None = None
    prompts: str | None = None
    data: Path | None = None
    channels_last: bool = False

    @classmethod
    def of(
        cls,
        model: str | Card,
        weights: Path | str | None = None,
        random_weights: bool = False,
        dtype: torch.dtype | str = "float32",
        guidance: float | None = None,
        prompts: str | None = None,
        data: Path | str | None = None,
        channels_last: bool = False,
    ) -> "Source":
        """``None`` means what the card says. Raises `ConfigError` and, for weights or data that are not there, `WeightsError` and
        `DatasetError`.
        """
        entry = card(model) if isinstance(model, str) else model
        dtype = dtype_name(dtype, DTYPES, "model.dtype")
        if guidance is not None and entry.guidance is None:
            raise ConfigError(f"model.guidance={guidance}: {entry.name} is unconditional. Leave model.guidance unset.")
        if guidance is not None and not 1 <= guidance <= 100:
            raise ConfigError(f"model.guidance={guidance} is outside [1, 100]; 1 is the conditional model without guidance.")
        if prompts is not None and "text_encoder" not in entry.components:
            raise ConfigError(f"model.prompts: {entry.name} takes no text. Leave model.prompts unset.")
        given: dict[str, object] = {"weights": weights, "random_weights": random_weights, "dtype": dtype, "data": data}
        dataset.require_settings(entry, given | {"channels_last": channels_last})
        needs_folder = entry.dataset is None and (not random_weights or weights is not None or entry.packaged is not None)
        folder = find(entry, weights) if needs_folder else None
        scale = entry.guidance if guidance is None else guidance
        return cls(entry, folder, random_weights, dtype, scale, prompts, None if data is None else user_path(data), channels_last)

    @property
    def weights_hash(self) -> str:
        """See `iec.models.weights.digest`; ``random`` for random weights, with the configuration's hash if one was given. Of an
        ideal model that of its images, see `iec.models.dataset.digest`.
        """
        if self.card.dataset is not None:
            return dataset.digest(self.card, self.data, self.random_weights)
        if not self.random_weights:
            assert self.folder is not None  # found by `of`
            return digest(self.card, self.folder)
        if self.folder is None or is_packaged(self.card, self.folder):
            return "random"
        return f"random-{configuration_hash(self.card, self.folder)}"

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values: what the bytes of an image depend on."""
        identity: dict[str, Any] = {"name": self.card.name, "weights": self.weights_hash}
        if self.dtype != "float32":
            identity["dtype"] = self.dtype
        if self.channels_last:
            identity["channels_last"] = True
        if self.guidance is not None:
            identity["guidance"] = self.guidance
        if (conditioning := self.conditioning) is not None:
            identity["conditioning"] = conditioning
        return identity

    @property
    def conditioning(self) -> dict[str, Any] | None:
        """The identity of the conditioner that `load` makes, before anything is loaded."""
        if "class_embedding" in self.card.components or self.card.takes_labels:
            return LabelNumbers.fingerprint()
        if "text_encoder" in self.card.components:
            return Prompts.fingerprint(prompts_of(self.prompts))
        return None

    def skeleton(self) -> nn.Module:
        """The UNet on torch's meta device: its structure without data, to check things against. Raises `MismatchError` for an
        ideal model and a transformer, which have none.
        """
        require_unet(self.card)
        component = self.card.predictor
        config = None if self.folder is None else config_of(self.card, self.folder, component)
        values = component.config if config is None else config
        return _skeleton(component.kind, component.heads, json.dumps(values, sort_keys=True, default=list))

    def load(self, device: str = "auto") -> Model:
        """Raises `DeviceError`, `WeightsError` and `DatasetError`."""
        target, identity = resolve_device(device), self.identity  # refuses damaged files before anything is made
        return Model(
            card=self.card,
            unet=self._predictor(target) if self.card.dataset is None else self._ideal(target),
            identity=identity,
            device=target,
            guidance=self.guidance,
            decoder=self._decoder(target),
            conditioner=self._conditioner(target),
        )

    def _predictor(self, device: torch.device) -> nn.Module:
        module = self._module(self.card.predictor.name, DTYPES[self.dtype], device)
        return nn.Module.to(module, memory_format=torch.channels_last) if self.channels_last else module

    def _ideal(self, device: torch.device) -> IdealNetwork:
        images = dataset.images_of(self.card, self.data, self.random_weights)
        return IdealNetwork(images, self.card.schedule).to(device).eval()

    def _decoder(self, device: torch.device) -> Decoder | None:
        component = self.card.decoder
        if component is None:
            return None
        config = component.config if self.folder is None else config_of(self.card, self.folder, component)
        factor = config.get("scaling_factor") or component.config.get("scaling_factor")
        if factor is None and not self.random_weights:
            raise ConfigError(
                f"{self.card.name}: config.json of {component.name} has no scaling_factor, which comes with the weights. Convert "
                f"the checkpoint: python -m iec convert {self.card.name}"
            )
        return Decoder(self._module(component.name, torch.float32, device), float(factor or 1.0), self.card.resolution)

    def _conditioner(self, device: torch.device) -> Conditioner | None:
        dtype = DTYPES[self.dtype]
        if "class_embedding" in self.card.components:
            return ClassLabels(self._module("class_embedding", dtype, device))
        if self.card.takes_labels:
            return LabelNumbers()
        if "text_encoder" in self.card.components:
            folder = None if self.folder is None or self.random_weights else self.folder / "tokenizer"
            tokenizer = load_tokenizer(folder if folder is not None and folder.is_dir() else None)
            return Prompts(TextEncoder(self._module("text_encoder", dtype, device), tokenizer), prompts_of(self.prompts))
        return None

    def _module(self, name: str, dtype: torch.dtype, device: torch.device) -> Any:
        """A component with its weights. Modules of diffusers are made without data, and their weights put in place."""
        component = self.card.components[name]
        config = None if self.folder is None else config_of(self.card, self.folder, component)
        if self.random_weights:
            return nn.Module.to(build(component, config), device, dtype)  # diffusers' own warns of a dtype
        assert self.folder is not None  # found by `of`
        bare = component.kind in DIFFUSERS or component.kind == "Embedding"
        module = build(component, config, device="meta" if bare else "cpu")
        fill(module, weights_files(component_folder(self.card, self.folder, component), component), dtype, device)
        fill_computed(module, component, component.config if config is None else config, dtype)
        return nn.Module.to(module, device).eval().requires_grad_(False)


@cache
def _skeleton(kind: Any, heads: int | None, config: str) -> nn.Module:
    """Once for the many cells of a table."""
    return build(Component("unet", kind, 0, json.loads(config), heads), device="meta")


def load_model(
    name: str = "ddim_cifar_small",
    device: str = "auto",
    weights: Path | str | None = None,
    random_weights: bool = False,
    dtype: torch.dtype | str = "float32",
    guidance: float | None = None,
    prompts: str | None = None,
    data: Path | str | None = None,
    channels_last: bool = False,
) -> Model:
    """Load a model by the name of its card (iec/models/cards.yaml).

    * device: ``auto`` is a GPU if there is one, else the CPU.
    * weights: a local folder in diffusers' layout, ``hub`` or a hub id, instead of the packaged or converted one.
    * random_weights: seeded random weights of the same architecture, for tests and speed.
    * dtype (``float32``, ``float16``, ``bfloat16``): of the UNet and the text encoder.
    * guidance: the scale w; None is the card's.
    * prompts: None, a text file with one prompt per line, or COCO's captions_val2014.json.
    * data: the folder of an ideal model's whole data set; None is what the package carries of it.
    * channels_last: keep the UNet's convolutions so in memory; how fast they are depends on the machine.

    Raises `ConfigError`, `DeviceError`, `WeightsError`, `DatasetError`.
    """
    return Source.of(name, weights, random_weights, dtype, guidance, prompts, data, channels_last).load(device)
