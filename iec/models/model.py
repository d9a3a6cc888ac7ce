"""Load a model strictly: every tensor of the file is used, every parameter is filled, the bytes are the expected ones."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from iec.errors import WeightsError
from iec.files import sha256
from iec.models.cards import FOLDER, Card, card
from iec.network import UNetNetwork
from iec.runtime import resolve_device

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


@dataclass(frozen=True)
class Model:
    """A UNet in evaluation mode on its device, what it is (``card``), and ``weights_hash``, the identity of its parameters."""

    card: Card
    unet: nn.Module
    weights_hash: str
    device: torch.device

    @property
    def network(self) -> UNetNetwork:
        """The full-precision network."""
        return UNetNetwork(self.unet)

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] from the sampler's last state; the identity for a pixel model."""
        return x


def weights_file(name: str, weights: Path | str | None = None) -> Path:
    """Where the weights of a model are: in ``weights`` (a diffusers folder) or in the package. Raises `WeightsError` if missing."""
    folder = Path(weights) if weights is not None else FOLDER / card(name).folder
    for file in (folder / WEIGHTS, folder / CONFIG):
        if not file.is_file():
            way_out = (
                "Give model.weights a diffusers UNet folder."
                if weights is not None
                else "The package is incomplete: install it again."
            )
            raise WeightsError(f"{name}: {file} does not exist (expected sha256 of the weights {card(name).sha256}). {way_out}")
    return folder / WEIGHTS


def weights_hash(name: str, weights: Path | str | None = None, random_weights: bool = False) -> str:
    """sha256 of the weights file, checked against the card for the packaged ones; ``random`` for random weights. The configuration
    of a folder that is given is hashed too: equal tensors under another one are another model.
    """
    own = "" if weights is None else f"-{sha256(_config_file(name, weights))[:16]}"
    if random_weights:
        return f"random{own}"
    file = weights_file(name, weights)
    digest = sha256(file)
    if weights is None and digest != card(name).sha256:
        raise WeightsError(
            f"{file} is damaged: {file.stat().st_size} bytes with sha256 {digest}, expected {card(name).sha256}. "
            "Restore it: git checkout (or git lfs pull) in a clone, or install the package again."
        )
    return digest + own


@cache
def skeleton(name: str, weights: Path | str | None = None) -> nn.Module:
    """The UNet on torch's meta device: its structure without data, to check things against. Raises like `weights_file`."""
    with torch.device("meta"):
        return UNet2DModel.from_config(json.loads(_config_file(name, weights).read_text(encoding="utf-8")))


def _config_file(name: str, weights: Path | str | None) -> Path:
    return weights_file(name, weights).with_name(CONFIG)


def load_model(
    name: str = "ddim_cifar_small",
    device: str = "auto",
    weights: Path | str | None = None,
    random_weights: bool = False,
) -> Model:
    """Load a model by name.

    weights: a local diffusers folder to use instead of the packaged or downloaded one. random_weights: seeded random weights of
    the same architecture, for tests and speed. Raises `ConfigError`, `DeviceError`, `WeightsError`.
    """
    facts, target = card(name), resolve_device(device)
    digest = weights_hash(name, weights, random_weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet: Any = UNet2DModel.from_config(json.loads(_config_file(name, weights).read_text(encoding="utf-8")))
    if not random_weights:
        _fill(unet, weights_file(name, weights))
    unet = unet.to(target).eval().requires_grad_(False)
    return Model(facts, unet, digest, target)


def _fill(unet: nn.Module, file: Path) -> None:
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is truncated or not a safetensors file ({file.stat().st_size} bytes: {error}). Fetch it again."
        ) from error
    try:
        unet.load_state_dict({key: value.float() for key, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{file} does not fit the architecture of {file.with_name(CONFIG)}: {error}") from error
