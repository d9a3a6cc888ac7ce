"""A pickle reader that cannot run code: it understands tensors, and takes everything else for a stub.

Why not ``torch.load(weights_only=True)``: it refuses a file that names any class it does not know (CompVis' checkpoints hold
Lightning callbacks), it cannot map the older, non-zip format into memory, and two of its releases were bypassed (CVE-2025-32434,
CVE-2026-24747). Here nothing that a pickle names is ever imported or called. It resolves to one of four harmless things of this
file: a storage's dtype, a recipe that notes where a tensor lies, a dictionary, or `Inert`. No tensor exists while the pickle
runs; what it says about sizes is checked before a byte is read.

The one instruction left that changes objects, BUILD (attributes from a state), calls ``__setstate__`` where there is one: every
object that can be reached has one that does nothing (`Sealed`). What a hostile file can still do is to exhaust the memory.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import torch

from iec.errors import WeightsError

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Sealed:
    """A pickle cannot set its attributes."""

    def __setstate__(*_: object) -> None:  # without self: it may be called on the class as well
        pass


class Inert(Sealed):
    """Stands for every class and function that is not known: takes any arguments, state and items, and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def _nothing(self, *_: object) -> None:
        pass

    __setitem__ = append = extend = add = _nothing


class Dictionary(Sealed, dict[Any, Any]):
    """For collections.OrderedDict; its attributes (``_metadata`` of a state dict) are dropped."""


@dataclass(frozen=True)
class StorageType(Sealed):
    dtype: torch.dtype


@dataclass(frozen=True)
class Storage(Sealed):
    """Numbers somewhere in the file: ``numel`` of ``dtype`` in the record ``key``."""

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(Sealed):
    """A tensor of the file, not read yet: the view of ``storage`` from element ``offset`` on."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of the storage from the tensor's first to its last."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) if self.numel else 0


@dataclass(frozen=True)
class Recipe(Sealed):
    """A function that a pickle may call."""

    function: Callable[..., object]

    def __call__(self, *arguments: object) -> object:
        return self.function(*arguments)


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2; gradients, hooks and metadata are dropped."""
    if not (isinstance(storage, Storage) and isinstance(offset, int) and isinstance(shape, tuple) and isinstance(stride, tuple)):
        raise pickle.UnpicklingError("a tensor without storage, offset, shape or stride")
    if len(shape) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride)):
        raise pickle.UnpicklingError(f"a tensor of shape {shape}, stride {stride}, offset {offset}")
    tensor = StoredTensor(storage, offset, shape, stride)
    if tensor.offset + tensor.span > storage.numel or tensor.numel > storage.numel:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} does not lie within its {storage.numel} numbers")
    return tensor


def _parameter(tensor: object, *_: object) -> object:
    """torch._utils._rebuild_parameter."""
    return tensor


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): Recipe(_tensor),
    ("torch._utils", "_rebuild_parameter"): Recipe(_parameter),
    **{("torch", name): StorageType(dtype) for name, dtype in DTYPES.items()},
}


class TensorUnpickler(pickle.Unpickler):
    """Reads one pickle. storages: by key, all that it names. stubs: what became `Inert`, as ``module.name``."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self.stubs: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """In place of the import that pickle makes here."""
        if (module, name) not in KNOWN:
            self.stubs.add(f"{module}.{name}")
        return KNOWN.get((module, name), Inert)

    def persistent_load(self, identity: Any) -> Storage | type[Inert]:
        """("storage", type, key, location, numel), in the older format with the view of another storage: always None. The older
        format also has ("module", class, file, source code) for the class of a module.
        """
        match identity:
            case ("module", *_):
                return Inert
            case ("storage", StorageType(dtype), str(key), _, int(numel), *view) if numel >= 0 and view in ([], [None]):
                storage = Storage(dtype, key, numel)
            case _:
                raise pickle.UnpicklingError("a storage in an unknown form")
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"two storages are called {key}")
        return storage

    def read(self, what: str) -> Any:
        """The object. Raises `WeightsError` for bytes that are no pickle, and for one that wants what it cannot have."""
        try:
            return self.load()
        except Exception as error:  # a damaged or hostile pickle can raise anything (documentation of the pickle module)
            raise WeightsError(f"{what} cannot be read: {type(error).__name__}: {error}") from error
