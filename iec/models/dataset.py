"""The images of an ideal model: those that the package carries, a whole data set, or random ones."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iec.errors import ConfigError, DatasetError
from iec.io.datasets import HOW_TO_GET, HOW_TO_GET_FASHION, load_cifar10, load_fashion_mnist_32, pad_to_32, read_idx
from iec.io.files import sha256 as file_sha256
from iec.models.cards import FOLDER, Card

LOADERS: dict[str, tuple[Callable[[Path], np.ndarray], str]] = {
    "fashion_mnist": (load_fashion_mnist_32, HOW_TO_GET_FASHION),
    "cifar10": (load_cifar10, HOW_TO_GET),
}
"""`Card.dataset` -> from its folder to the training images, uint8 [M, H, W, C], and how to get the folder."""
PACKAGED = "train-images-idx3-ubyte.gz"
RANDOM_IMAGES = 64


def require_settings(card: Card, settings: dict[str, object]) -> None:
    """Raises `ConfigError` for what only a trained model has, set for an ideal one, and the other way round.

    settings: weights, random_weights, dtype, data, channels_last, of the configuration group ``model``.
    """
    if card.dataset is None:
        if settings["data"] is not None:
            raise ConfigError(f"model.data: {card.name} is a trained network and has no data set. Leave model.data unset.")
        return
    if settings["weights"] is not None:
        raise ConfigError(f"model.weights: {card.name} has no weights but a data set. Give model.data=DIR, or neither.")
    if settings["dtype"] != "float32":
        raise ConfigError(f"model.dtype={settings['dtype']}: {card.name} computes in float32. Leave model.dtype unset.")
    if settings["channels_last"]:
        raise ConfigError(f"model.channels_last: {card.name} has no convolutions. Leave model.channels_last unset.")
    if settings["random_weights"] and settings["data"] is not None:
        raise ConfigError(f"model.random_weights gives {card.name} random images in place of model.data. Leave one of them unset.")
    if card.packaged is None and settings["data"] is None and not settings["random_weights"]:
        raise DatasetError(
            f"{card.name} needs its data set: model.data=DIR.\n{LOADERS[card.dataset][1]}\n"
            "Without it: model=ideal_fashion has its images in the package, and model.random_weights=true takes random ones."
        )


def images_of(card: Card, folder: Path | None, random: bool) -> Tensor:
    """float32 [M, C, H, W] in [-1, 1]. folder: of the whole data set, None for what the package carries. random: seeded uniform
    noise, for tests and speed. Raises `DatasetError`.
    """
    if random:
        return torch.rand(RANDOM_IMAGES, *card.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert card.dataset is not None  # of an ideal model
    pixels = pad_to_32(read_idx(_packaged(card)[0])) if folder is None else LOADERS[card.dataset][0](folder)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def digest(card: Card, folder: Path | None, random: bool) -> str:
    """Identity of these images: sha256 of the packaged file, else of the pixels; ``random``. Raises `DatasetError`."""
    if random:
        return "random"
    assert card.dataset is not None  # of an ideal model
    return _packaged(card)[1] if folder is None else _pixels_sha256(card.dataset, folder)


@cache
def _file_sha256(path: Path, modified: int) -> str:
    """Once for a file that stays as it is."""
    return file_sha256(path)


@cache
def _pixels_sha256(dataset: str, folder: Path) -> str:
    """Once for the many cells of a table."""
    return sha256(LOADERS[dataset][0](folder).tobytes()).hexdigest()


def _packaged(card: Card) -> tuple[Path, str]:
    """The file, and its checked sha256."""
    assert card.packaged is not None  # by `require_settings`
    path = FOLDER / card.packaged.folder / PACKAGED
    found = _file_sha256(path, path.stat().st_mtime_ns) if path.is_file() else "no file"
    if found != card.packaged.sha256:
        raise DatasetError(
            f"{path} is damaged: sha256 {found}, expected {card.packaged.sha256}. Restore it: git checkout in a clone, or install "
            "the package again; or give model.data=DIR, the whole data set."
        )
    return path, found
