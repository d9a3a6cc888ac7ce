"""Is there a place for the result? Asked before the hours that it takes to compute it."""

import os
import tempfile
from pathlib import Path

from iec.errors import StoreError


def require_writable(path: Path, option: str) -> None:
    """Raises `StoreError` if no file can be put at ``path``: a folder is there, or the folder that it goes to is no folder or
    cannot be written. A missing folder is fine, where one can be made. option: what chooses another path, for the message.
    """
    if path.is_dir():
        raise StoreError(f"{path} is a folder, not a file to write. Choose another path: {option}.")
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {folder}: {error.strerror}. Choose another path: {option}.") from error
