"""Which files a folder has."""

import os
from collections.abc import Iterator
from pathlib import Path

from iec.errors import MetricError

FOREIGN = ("__MACOSX", "@eaDir")
"""Folders that macOS and network drives put beside the user's own, with small copies of the images."""


def files_below(folder: Path) -> Iterator[str]:
    """Paths of all files, relative to ``folder``, as ``find -L`` lists them: links are followed, but for one to a folder that it lies
    in, which would never end.

    Left out is what the user did not put there: names that begin with a dot (.ipynb_checkpoints; macOS's ._0.png) and `FOREIGN`.
    Raises `MetricError` for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise MetricError(f"{error.filename} cannot be read: {error.strerror}. Check its permissions.") from error

    above = {os.fspath(folder): frozenset([os.path.realpath(folder)])}  # of each folder: itself and those that it lies in
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        around = above.pop(place)
        inside = {name: os.path.realpath(os.path.join(place, name)) for name in folders if _own(name)}
        folders[:] = [name for name, real in inside.items() if real not in around]
        above |= {os.path.join(place, name): around | {inside[name]} for name in folders}
        yield from (Path(place, name).relative_to(folder).as_posix() for name in names if _own(name))


def _own(name: str) -> bool:
    return not name.startswith(".") and name not in FOREIGN
