"""Files that are either complete or absent: write to a unique temporary name, fsync, rename."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from iec.errors import StoreError


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a temporary file beside ``path``, then rename it there.

    A kill at any moment leaves either the old file or the new one. Raises `StoreError` when the folder cannot be written
    or the disk is full; the temporary file is removed.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"Cannot write {path}: {error.strerror or error}. Finished files beside it are intact. Free space, or write to another "
            "folder, and run the same command again."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Atomically, as UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Atomically, with sorted keys, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """None if the file is missing or damaged: both mean that what it records has to be made again. Raises `StoreError` if it cannot
    be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return None
    except OSError as error:
        raise StoreError(
            f"Cannot read {path}: {error.strerror}. Correct its permissions, or remove what is in its place."
        ) from error


def as_stored(value: Any) -> Any:
    """JSON values as they come back from a file: tuples become lists. Raises `TypeError` for what JSON does not have."""
    return json.loads(json.dumps(value))


def require_folder(path: Path, option: str) -> None:
    """Raises `StoreError` unless ``path`` is a folder that can be written, or one that can be made. Makes nothing.

    option: names it, for the way out.
    """
    there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not there.exists():
        reason = f"{there} is a link to nothing"
    elif not there.is_dir():
        reason = f"{there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"{there} cannot be written"
    else:
        return
    raise StoreError(f"{path} cannot be used: {reason}. Choose another folder ({option}=DIR).")


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_hash(value: Any) -> str:
    """sha256 of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
