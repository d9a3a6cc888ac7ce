"""JSON files that are read back into dataclasses: checked once, here, so that no other shape of JSON gets further."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from iec.io.files import read_json

T = TypeVar("T")


class ShapeError(ValueError):
    """JSON of another shape than the dataclass that it is read into. The message names the place."""


def read_record(path: Path, kind: type[T]) -> T | None:
    """The dataclass ``kind`` that a file holds, written by `iec.io.files.write_json` from its ``asdict``.

    None if the file is missing, damaged or of another shape, such as that of an older version: what it records is made again.
    Raises `StoreError` if it cannot be read.
    """
    try:
        return parse(kind, read_json(path))
    except ShapeError:
        return None


def parse(kind: Any, value: Any, where: str = "") -> Any:
    """``value``, as `json.loads` gives it, as the type ``kind``: a dataclass, None, bool, int, float, str, Any, a union,
    ``dict[str, ..]``, ``list[..]`` or ``tuple[.., ...]``. A field with a default may be missing, an unknown one may not be
    there. An int is a float as well, and stays an int. Raises `ShapeError`.
    """
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _union(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        return {key: parse(arguments[1], inner, f"{where}.{key}") for key, inner in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        return origin(parse(arguments[0], inner, f"{where}[{k}]") for k, inner in enumerate(value))
    allowed = {float: (float, int), None: (NoneType,)}.get(kind, (origin or kind,))
    if type(value) not in allowed or origin is not None:  # by type: True is no int here
        raise ShapeError(f"{where or 'the file'} is {value!r:.60}, not {kind}")
    return value


def _union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return parse(kind, value, where)
        except ShapeError as error:
            last = error
    raise last


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ShapeError(f"{where or 'the file'} is {value!r:.60}, not an object")
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    hints = get_type_hints(kind)
    if wrong := (needed - value.keys()) | (value.keys() - {f.name for f in fields(kind)}):
        raise ShapeError(f"{where or 'the file'} has fields missing or unknown: {', '.join(sorted(wrong))}")
    return kind(**{name: parse(hints[name], inner, f"{where}.{name}".lstrip(".")) for name, inner in value.items()})
