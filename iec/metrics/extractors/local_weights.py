"""Files of weights that are the user's to get: looked for on this machine, checked, and never fetched."""

import os
from dataclasses import dataclass
from pathlib import Path

from iec.errors import WeightsError
from iec.io.files import sha256
from iec.io.paths import user_path
from iec.metrics.extractors.inception_weights import checkpoints

VARIABLE = "IEC_METRIC_WEIGHTS"
"""Names a folder that is looked in before torch.hub's."""


@dataclass(frozen=True)
class WeightsFile:
    """names: that the file may have. url: where it comes from. digest: its SHA-256, or the first digits of it that its
    publisher gives; empty where none are published.
    """

    names: tuple[str, ...]
    url: str
    digest: str = ""

    def find(self) -> tuple[Path, str]:
        """The file and its SHA-256. Raises `WeightsError` for a missing file or another one than published, with the way out."""
        folders = [*([user_path(given)] if (given := os.environ.get(VARIABLE)) else []), checkpoints()]
        path = next((path for folder in folders for name in self.names if (path := folder / name).is_file()), None)
        if path is None:
            places = " nor in ".join(map(str, folders))
            raise WeightsError(f"{self.names[0]} is {'not' if len(folders) == 1 else 'neither'} in {places}. {self._way_out()}")
        if not (actual := sha256(path)).startswith(self.digest):
            raise WeightsError(f"{path} is damaged or another file: its SHA-256 is {actual[:12]}... . Delete it. {self._way_out()}")
        return path, actual

    def _way_out(self) -> str:
        known = {0: "its SHA-256 is not published", 64: f"SHA-256 {self.digest}"}.get(
            len(self.digest), f"whose SHA-256 begins with {self.digest}"
        )
        return (
            f"It is not fetched without being asked for. Needed: {self.url} ({known})\n"
            f"    curl -L --create-dirs -o {checkpoints() / self.names[0]} {self.url}\n"
            f"or put it into a folder and set {VARIABLE}=FOLDER."
        )
