"""Which files a folder has."""

import os
from collections.abc import Iterator
from pathlib import Path

from iec.errors import MetricError

FOREIGN = ("__MACOSX", "@eaDir")
"""Folders that macOS and network drives put beside the user's own, with small copies of the images."""


def files_of(folder: Path, recursive: bool) -> Iterator[str]:
    """Names of the files of a folder, and if ``recursive`` those below it as SUB/NAME, as ``find -L`` lists them: links are
    followed, except one to a folder that it lies in, which would never end.

    Left out is what the user did not put there: names that begin with a dot (.ipynb_checkpoints; ._0.png of macOS) and `FOREIGN`.
    Raises `MetricError` for a folder that cannot be read.
    """
    yield from _walk(folder, "", frozenset([os.path.realpath(folder)]) if recursive else None)


def _walk(folder: Path, prefix: str, above: frozenset[str] | None) -> Iterator[str]:
    """above: real paths of this folder and of those that it lies in; None: do not go below."""
    try:
        with os.scandir(folder) as entries:
            own = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in FOREIGN]
    except OSError as error:
        raise MetricError(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from error
    for entry in own:
        if not _is_folder(entry):
            yield prefix + entry.name
        elif above is not None and (real := os.path.realpath(entry)) not in above:
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", above | {real})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
