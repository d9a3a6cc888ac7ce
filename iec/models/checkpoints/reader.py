"""Checkpoints of ``torch.save`` in both of its formats, opened safely and read one tensor at a time.

* zip (torch 1.6 and later): NAME/data.pkl, one pickle, and NAME/data/KEY, the numbers of one storage each, not compressed;
* legacy: five pickles one after another (magic number, version, system, the object, the keys of its storages), then for each key a
  64-bit count and the numbers.
"""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from iec.errors import WeightsError
from iec.io.filetypes import is_safetensors, mistaken
from iec.models.checkpoints.unpickle import Storage, StoredTensor, TensorUnpickler

ZIP = b"PK\x03\x04"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DAMAGE = (WeightsError, zipfile.BadZipFile, struct.error, ValueError, RuntimeError, EOFError)
"""What reading a wrong file raises; zipfile's RuntimeError: encrypted, or of a version or method that it does not know."""
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field


@dataclass(frozen=True)
class Checkpoint:
    """The state dict of a file: ``tensors`` by name, none of them in memory.

    positions: of each storage in the file, in bytes, by key. stubs: classes and functions that the file names and that were not
    imported.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    positions: Mapping[str, int]
    stubs: frozenset[str]

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype, contiguous, in memory of its own."""
        stored = self.tensors[name]
        if not stored.numel:
            return torch.empty(stored.shape, dtype=stored.dtype)
        numbers = bytearray(stored.span * stored.dtype.itemsize)
        with self.path.open("rb") as file:
            file.seek(self.positions[stored.storage.key] + stored.offset * stored.dtype.itemsize)
            if file.readinto(numbers) != len(numbers):
                raise damaged(self.path, f"it ends within {name}")
        return torch.frombuffer(numbers, dtype=stored.dtype).as_strided(stored.shape, stored.stride).contiguous()


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads the pickle alone; every storage is known to lie within the file. A zip's checksums are verified.

    Raises `WeightsError` for a truncated or damaged file, one of another format, and one that holds no state dict.
    """
    refuse_others(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP)) == ZIP
            file.seek(0)
            unpickler, value, positions = _read_zip(file) if is_zip else _read_legacy(file)
    except DAMAGE as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}. Fetch it again.") from error
    return Checkpoint(path, _state_dict(path, value), positions, frozenset(unpickler.stubs))


def refuse_others(path: Path) -> None:
    """Raises `WeightsError` for a path that cannot be read, and for a file that is something else, which it names."""
    try:
        if sentence := mistaken(path):
            raise WeightsError(sentence)
        if is_safetensors(path):
            raise WeightsError(
                f"{path} is a safetensors file; what is converted here is the checkpoint as its authors published it. A model in "
                "diffusers' layout is used as it is: model.weights=DIR, with unet/ and the others in DIR."
            )
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened: {error.strerror or error}. Give an existing file.") from error


def damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path} ({path.stat().st_size} bytes) is truncated, damaged or no checkpoint: {reason}. Fetch it again.")


def _state_dict(path: Path, value: Any) -> dict[str, StoredTensor]:
    """The file's object itself, or what it has under "state_dict" (Lightning)."""
    state = value.get("state_dict", value) if isinstance(value, dict) else None
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path} holds no state dict. Give a file that torch.save made of one.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise WeightsError(
                f"{path}: {str(name)[:80]!r} of its state dict is no tensor. Give the checkpoint as it was published."
            )
    return dict(state)


def _read_zip(file: BinaryIO) -> tuple[TensorUnpickler, Any, dict[str, int]]:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(f"a zip archive with {len(pickles)} data.pkl, not one")
        if packed := [name for name, record in records.items() if record.compress_type != zipfile.ZIP_STORED]:
            raise WeightsError(f"{packed[0]} is compressed, which torch.save never does")
        if wrong := archive.testzip():
            raise WeightsError(f"the checksum of {wrong} is wrong")
        folder = pickles[0].removesuffix("data.pkl")
        if (order := folder + "byteorder") in records and archive.read(order) != b"little":
            raise WeightsError("its numbers are big-endian")
        with archive.open(pickles[0]) as source:
            unpickler = TensorUnpickler(source)  # type: ignore[arg-type]  # a ZipExtFile reads like a file
            value = unpickler.read(pickles[0])
        storages = unpickler.storages.values()
        return unpickler, value, {s.key: _position(file, records.get(f"{folder}data/{s.key}"), s) for s in storages}


def _position(file: BinaryIO, record: zipfile.ZipInfo | None, storage: Storage) -> int:
    """Of a record's first byte, behind its local header."""
    if record is None:
        raise WeightsError(f"it has no record data/{storage.key}")
    if record.file_size != storage.nbytes:
        raise WeightsError(f"data/{storage.key} has {record.file_size} bytes, not {storage.nbytes}")
    file.seek(record.header_offset)
    _, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return record.header_offset + LOCAL_HEADER.size + name + extra


def _read_legacy(file: BinaryIO) -> tuple[TensorUnpickler, Any, dict[str, int]]:
    for what, expected in {"the magic number": MAGIC, "the protocol version": PROTOCOL}.items():
        if TensorUnpickler(file).read(what) != expected:
            raise WeightsError(f"{what} is not that of torch.save")
    system = TensorUnpickler(file).read("the description of the system")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError("its numbers are not little-endian")
    unpickler = TensorUnpickler(file)
    value = unpickler.read("the object")
    keys = TensorUnpickler(file).read("the keys of the storages")
    if not isinstance(keys, list) or set(map(str, keys)) != unpickler.storages.keys() or len(keys) != len(unpickler.storages):
        raise WeightsError("its list of storages is not that of its tensors")
    return unpickler, value, _positions(file, [unpickler.storages[str(key)] for key in keys])


def _positions(file: BinaryIO, storages: list[Storage]) -> dict[str, int]:
    positions, at = {}, file.tell()
    for storage in storages:
        file.seek(at)
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel:
            raise WeightsError(f"storage {storage.key} has {numel} numbers, not {storage.numel}")
        positions[storage.key] = at + 8
        at += 8 + storage.nbytes
    if (end := file.seek(0, 2)) != at:
        raise WeightsError(f"it should have {at} bytes, not {end}")
    return positions
