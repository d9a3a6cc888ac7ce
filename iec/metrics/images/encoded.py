"""Image files in folders and databases as a source."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from iec.errors import MetricError
from iec.metrics.images.decode import SUFFIXES, DamagedImageError, Preprocess, decode
from iec.metrics.images.listing import files_of
from iec.metrics.images.sources import AS_STORED, BLOCK, state_of

THREADS = 4
"""That decode ahead."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Container(Protocol):
    """Where encoded images lie."""

    def reader(self) -> AbstractContextManager[Callable[[str], bytes]]:
        """The function from a name to the file's bytes; called from several threads at once."""
        ...

    def state(self, names: Sequence[str]) -> str:
        """See `Source`."""
        ...


@dataclass(frozen=True)
class Files:
    """A folder."""

    folder: Path

    def reader(self) -> AbstractContextManager[Callable[[str], bytes]]:
        return nullcontext(self._read)

    def state(self, names: Sequence[str]) -> str:
        return state_of([self.folder / name for name in names])

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            if path.is_symlink() and not path.exists():
                raise DamagedImageError(
                    f"{path} is a link to {path.readlink()}, which is not there. Mend the link, or pass --skip-damaged."
                ) from error
            raise MetricError(f"{path} cannot be read: {error.strerror}. Check the folder and its permissions.") from error


@dataclass(frozen=True)
class EncodedSource:
    """Encoded images by name in a container; decoded a little ahead, by a few threads, in order."""

    container: Container
    names: Sequence[str]
    label: str
    resolution: int
    channels: int
    preprocess: Preprocess = AS_STORED

    @property
    def state(self) -> str:
        return self.container.state(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def blocks(self, start: int = 0, stop: int | None = None, skipped: list[str] | None = None) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        names = self.names[start:stop]
        with self.container.reader() as read, ThreadPoolExecutor(THREADS) as pool:
            decoded = in_order(pool, lambda name: self._decode(read, name), names, ahead=BLOCK)
            for name, image in zip(names, decoded, strict=True):
                if isinstance(image, np.ndarray):
                    waiting.append(image)
                elif skipped is None:
                    raise image
                else:
                    skipped.append(name)
                if len(waiting) == BLOCK:
                    yield np.stack(waiting)
                    waiting = []
        if waiting:
            yield np.stack(waiting)

    def _decode(self, read: Callable[[str], bytes], name: str) -> np.ndarray | DamagedImageError:
        try:
            pixels = decode(read(name), name, self.preprocess)
        except DamagedImageError as error:
            return error
        if len(pixels) != self.resolution:
            raise MetricError(
                f"{name} is {len(pixels)} pixels wide, those before it {self.resolution}: one set has one size. Real images of "
                "several sizes are made equal by  python -m iec.metrics.references --resolution R --filter FILTER."
            )
        if pixels.shape[2] != self.channels:
            kind = "grey, not 8-bit RGB" if self.channels == 3 else "RGB, not grey"
            raise MetricError(
                f"{name} is {kind}; convert a folder of real images with  python -m iec.metrics.references --to-rgb, and save "
                "generated ones like those before it: one set is all RGB or all grey."
            )
        return pixels


def open_encoded(
    container: Container, names: Sequence[str], label: str, preprocess: Preprocess = AS_STORED, skip_damaged: bool = False
) -> EncodedSource:
    """With the resolution and channels of the first image that can be decoded.

    Raises `MetricError` if none can, or the first one is unfit.
    """
    with container.reader() as read:
        for name in names:
            try:
                pixels = decode(read(name), name, preprocess)
                return EncodedSource(container, names, label, len(pixels), pixels.shape[2], preprocess)
            except DamagedImageError:
                if not skip_damaged:
                    raise
    raise MetricError(f"{label}: none of {len(names)} images can be decoded. Make them again.")


def open_folder(
    folder: Path,
    recursive: bool = False,
    preprocess: Preprocess = AS_STORED,
    skip_damaged: bool = False,
    label: str | None = None,
) -> EncodedSource:
    """The PNG, JPEG and WebP files of a folder, sorted by name ("10.png" before "2.png"), sub-folders included if ``recursive``:
    those of `iec.metrics.images.listing.files_of`.

    Raises `MetricError` when there are none, or a sub-folder cannot be read.
    """
    if not folder.is_dir():
        raise MetricError(f"{folder} is not a folder. Give a folder of PNG, JPEG or WebP files, an npz file, or a cell's folder.")
    images = _images(folder, recursive)
    if not images:
        below = 0 if recursive else len(_images(folder, recursive=True))
        way_out = f", but {below} in sub-folders: pass --recursive" if below else "; give another folder"
        raise MetricError(f"{folder} holds no PNG, JPEG or WebP files{way_out}.")
    return open_encoded(Files(folder), images, label or f"folder {folder.resolve().name}", preprocess, skip_damaged)


def _images(folder: Path, recursive: bool) -> list[str]:
    return sorted(name for name in files_of(folder, recursive) if name.lower().endswith(SUFFIXES))


def in_order(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """``function`` of each item in order, computed by the pool at most ``ahead`` items before they are asked for."""
    rest, running = iter(items), deque[Future[Result]]()
    try:
        for item in islice(rest, ahead):
            running.append(pool.submit(function, item))
        while running:
            result = running.popleft().result()
            for item in islice(rest, 1):
                running.append(pool.submit(function, item))
            yield result
    finally:
        for future in running:
            future.cancel()
