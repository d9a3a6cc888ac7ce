"""Paths that users give."""

import os
import tempfile
from pathlib import Path

from iec.errors import ConfigError, StoreError


def user_path(given: str | Path) -> Path:
    """With ~ for the home: a shell leaves it as it is in --output=~/FILE, and so does an environment variable in quotes.

    Raises `ConfigError` for ~USER of a user who is not known here.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{given}: that home folder is not known. Write the path in full.") from error


def require_writable(path: Path, option: str) -> None:
    """To be called before the work whose result goes to ``path``. A missing folder is fine, where one can be made.

    option: what chooses another path, for the message. Raises `StoreError` if a folder is there, or the folder that the file goes
    to is no folder or cannot be written.
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
