"""Finished parts of a long analysis on disk, so that the same command goes on where it stopped."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iec.io.files import write_atomic

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class State:
    """Parts by name in a folder of one analysis alone (named by a hash of all that it depends on); None keeps nothing."""

    folder: Path | None = None

    def stored(self, name: str) -> Arrays | None:
        """A finished part, or None."""
        if self.folder is None or not (path := self.folder / f"{name}.npz").is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def keep(self, name: str, arrays: Arrays) -> Arrays:
        if self.folder is not None:
            write_atomic(self.folder / f"{name}.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        return arrays

    def part(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The part, made now or earlier."""
        stored = self.stored(name)
        return self.keep(name, make()) if stored is None else stored


NOTHING_KEPT = State()
