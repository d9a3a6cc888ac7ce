"""Arrays of images inside npz files, read and written a block at a time (numpy itself reads and writes them whole)."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from iec.errors import MetricError

LOCAL_HEADER, NAME_LENGTHS = 30, 26
"""Bytes of a zip member's own header before its name, and where in it the lengths of name and extra field stand."""
DATE = (1980, 1, 1, 0, 0, 0)
"""Of every member, so that equal images are equal bytes."""
DAMAGE = (OSError, ValueError, EOFError, KeyError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ImageArray:
    """A uint8 array [N, H, W, 1 or 3] called ``member`` in the npz file ``path``. offset: of its first pixel where it is not
    compressed."""

    path: Path
    member: str
    shape: tuple[int, ...]
    offset: int | None

    @classmethod
    def open(cls, path: Path, name: str = "arr_0") -> "ImageArray":
        """Reads only headers. Raises `MetricError` unless the array is there, whole, and square uint8 images, channels last."""
        member = f"{name}.npy"
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if member not in names:
                    arrays = ", ".join(n.removesuffix(".npy") for n in names)
                    raise MetricError(
                        f"{path} holds no images: there is no {name} among {arrays}. Give an npz as guided-diffusion writes it."
                    )
                info = archive.getinfo(member)
                with archive.open(info) as file:
                    shape, fortran, dtype = _header(file)
                    begins = file.tell()
                stored = info.compress_type == zipfile.ZIP_STORED
                offset = _data_offset(path, info) + begins if stored else None
        except DAMAGE as error:
            raise MetricError(f"{path} is missing, truncated or no npz file ({error}). Copy or make it again.") from error
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or shape[1] != shape[2] or not shape[0] or fortran:
            raise MetricError(
                f"{path}: {name} is {dtype} {list(shape)}{', by columns' * fortran}; images are square uint8 [N, H, W, 1 or 3]."
            )
        if info.file_size != begins + int(np.prod(shape)):
            raise MetricError(
                f"{path} is truncated: {name} holds fewer bytes than its shape {list(shape)} says. Copy or make it again."
            )
        return cls(path, member, shape, offset)

    def blocks(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """The images start .. stop - 1 in blocks of ``size``: mapped into memory, or decompressed as they are needed.

        Raises `MetricError` for damaged compressed data.
        """
        if self.offset is not None:
            mapped = np.memmap(self.path, np.uint8, "r", self.offset, self.shape)
            for k in range(start, stop, size):
                yield np.array(mapped[k : min(k + size, stop)])
            return
        image = int(np.prod(self.shape[1:]))
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                _header(file)
                file.seek(start * image, 1)
                for k in range(start, stop, size):
                    count = min(size, stop - k)
                    yield np.frombuffer(file.read(count * image), np.uint8).reshape(count, *self.shape[1:])
        except DAMAGE as error:
            raise MetricError(f"{self.path} is damaged ({error}). Copy or make it again.") from error


def write_images(file: BinaryIO, blocks: Iterable[np.ndarray], shape: tuple[int, ...], labels: np.ndarray | None = None) -> None:
    """An uncompressed npz with ``arr_0``, uint8 ``shape``, from blocks [B, H, W, C] that together have it, and ``arr_1``, the
    labels.

    Raises `MetricError` if there are fewer or more images than ``shape`` says.
    """
    if labels is not None and len(labels) != shape[0]:
        raise MetricError(f"{len(labels)} labels for {shape[0]} images; give one an image.")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, array_shape: tuple[int, ...], dtype: np.dtype, parts: Callable[[], Iterable[np.ndarray]]) -> int:
            with archive.open(zipfile.ZipInfo(f"{name}.npy", DATE), "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array_shape}
                np.lib.format.write_array_header_1_0(member, header)
                return sum(member.write(np.ascontiguousarray(part).data.cast("B")) for part in parts())

        written = write("arr_0", shape, np.dtype(np.uint8), lambda: blocks)
        if written != int(np.prod(shape)):
            raise MetricError(
                f"{written} bytes of images were read, {int(np.prod(shape))} expected; the source changed meanwhile. Run again."
            )
        if labels is not None:
            write("arr_1", labels.shape, labels.dtype, lambda: [labels])


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where in the file an uncompressed member's bytes begin."""
    with path.open("rb") as file:
        file.seek(info.header_offset + NAME_LENGTHS)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + LOCAL_HEADER + name + extra
