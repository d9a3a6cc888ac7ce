"""Images of any origin as uint8 blocks [B, H, W, C] in a fixed order: folders of files, npz batches, our own cells, arrays.

The same images give the same blocks and the same `Tally.sha256`, that of all pixels in order (a cell's manifest hash), whatever
they are stored in.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from iec.errors import MetricError
from iec.io.files import canonical_hash
from iec.metrics.images.decode import Preprocess
from iec.metrics.images.npz import ImageArray

BLOCK = 50
"""Images in a block."""
AS_STORED = Preprocess()


class Source(Protocol):
    """Images with an order. label: what they are, in a record. resolution: height and width of each, once preprocessed.

    channels: 1, grey, or 3, RGB. Grey images stay grey up to the extractor, which sees them repeated to RGB.
    """

    @property
    def label(self) -> str: ...

    @property
    def resolution(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def state(self) -> str:
        """Changes when the files do (names, sizes, modification times), without reading them."""
        ...

    def __len__(self) -> int:
        """Images, or files, some of which may turn out damaged."""
        ...

    def blocks(self, start: int = 0, stop: int | None = None, skipped: list[str] | None = None) -> Iterator[np.ndarray]:
        """The images start .. stop - 1 as uint8 [B <= 50, H, W, C]; raises `MetricError` or `StoreError` for what is no such image.

        Names of files that cannot be decoded are appended to ``skipped``; without that list they are a `DamagedImageError`.
        """
        ...


@dataclass
class Tally:
    """What has passed: number of images, and the sha256 of their pixels in order."""

    count: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def of(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The blocks, counted and hashed as they pass."""
        for block in blocks:
            self.count += len(block)
            self._digest.update(block.tobytes())
            yield block


def first(blocks: Iterable[np.ndarray], n: int) -> Iterator[np.ndarray]:
    """The first n images; nothing after them is read."""
    for block in blocks:
        yield block[:n]
        n -= len(block)
        if n <= 0:
            return


@dataclass(frozen=True)
class ArraySource:
    """uint8 [N, H, W, C] in memory."""

    images: np.ndarray
    label: str
    preprocess = AS_STORED

    @property
    def resolution(self) -> int:
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    @cached_property
    def state(self) -> str:
        return hashlib.sha256(self.images.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def blocks(self, start: int = 0, stop: int | None = None, skipped: list[str] | None = None) -> Iterator[np.ndarray]:
        stop = len(self) if stop is None else stop
        for k in range(start, stop, BLOCK):
            yield self.images[k : min(k + BLOCK, stop)]


@dataclass(frozen=True)
class NpzSource:
    """``arr_0`` of an npz file, as guided-diffusion writes and reads them."""

    array: ImageArray
    preprocess = AS_STORED

    @property
    def label(self) -> str:
        return f"npz {self.array.path.name}"

    @property
    def resolution(self) -> int:
        return self.array.shape[1]

    @property
    def channels(self) -> int:
        return self.array.shape[3]

    @property
    def state(self) -> str:
        return state_of([self.array.path])

    def __len__(self) -> int:
        return self.array.shape[0]

    def blocks(self, start: int = 0, stop: int | None = None, skipped: list[str] | None = None) -> Iterator[np.ndarray]:
        return self.array.blocks(start, len(self) if stop is None else stop, BLOCK)


def state_of(paths: Iterable[Path]) -> str:
    """Of names, sizes and modification times; of the link itself where it leads nowhere. Raises `MetricError` for no such file."""
    files = ((path, _status(path)) for path in paths)
    return canonical_hash([[str(path), status.st_size, status.st_mtime_ns] for path, status in files])


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat() if path.exists() else path.lstat()
    except OSError as error:
        raise MetricError(f"{path} cannot be read: {error.strerror}. Check the folder and its permissions.") from error
