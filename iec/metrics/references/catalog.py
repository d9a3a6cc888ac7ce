"""The data sets of ``references/datasets.yaml``, and where the statistics of each are looked for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from iec.errors import ArtifactError, ConfigError
from iec.io.paths import user_path
from iec.io.yaml import read_yaml

PACKAGED = Path(__file__).parent
VARIABLE = "IEC_REFERENCES"
PROTOCOLS = {
    "efflite0": "efficientnet_lite0",
    "efflite0_deep": "efficientnet_lite0_deep",
    "inception": "inception",
    "inception_pytorch_fid": "pytorch_fid",
    **{name: name for name in ("dinov2_vit_s_14", "dinov2_vit_l_14", "clip_vit_b_32", "clip_vit_l_14_336px")},
}
"""A protocol that uses the extractor of that name, for commands."""
ORIGINS = {"adm": "inception", "edm": "inception", "pytorch_fid": "inception_pytorch_fid"}
"""Tools that write statistics, and the name of the extractor that has their conventions."""


@dataclass(frozen=True)
class Published:
    """Statistics that somebody else offers. origin: whose conventions (`ORIGINS`)."""

    origin: str
    file: str
    url: str
    sha256: str | None


@dataclass(frozen=True)
class Dataset:
    """One entry; see the head of the file."""

    name: str
    title: str
    images: int | None
    resolution: int
    folder: str
    make: str
    get: str
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None

    def command(self, extractor: str) -> str:
        """What makes the file for the extractor of that name, and where its ingredients are."""
        script = "python -m iec.metrics.references"
        protocol = f" --protocol {PROTOCOLS[extractor]}" if extractor in PROTOCOLS else " --protocol NAME"
        made = f"{script} {self.make}{protocol}\n    (from the images, {self.get}; the folder holds {self.folder})"
        if self.published is None or ORIGINS[self.published.origin] != extractor:
            return made
        check = f"sha256 {self.published.sha256}" if self.published.sha256 else "its sha256 is not known to us"
        imported = f"{script} --dataset {self.name} --npz {self.published.file}{protocol}\n    (from {self.published.url}; {check})"
        return f"{imported}\n  or\n  {made}"


@cache
def _datasets() -> dict[str, Dataset]:
    entries = read_yaml(PACKAGED / "datasets.yaml")
    return {name: _dataset(name, **entry) for name, entry in entries.items()}


def _dataset(name: str, published: dict[str, Any] | None = None, **entry: Any) -> Dataset:
    return Dataset(name, published=Published(**published) if published else None, **entry)


def dataset_names() -> tuple[str, ...]:
    return tuple(_datasets())


def dataset(name: str) -> Dataset:
    """Raises `ConfigError` naming the known ones."""
    if name not in _datasets():
        raise ConfigError(f"Unknown data set {name!r}; choose one of {', '.join(_datasets())}.")
    return _datasets()[name]


def file_name(name: str, extractor: str) -> str:
    return f"{name}.{extractor}.safetensors"


def user_folder() -> Path:
    """Of the environment variable IEC_REFERENCES, else ~/.cache/iec/references."""
    return user_path(os.environ.get(VARIABLE) or "~/.cache/iec/references")


def find_reference(name: str, extractor: str) -> Path:
    """The packaged file, else the user's. Raises `ArtifactError` with the command that makes it, `ConfigError` for an unknown
    set."""
    entry, file = dataset(name), file_name(name, extractor)
    for folder in (PACKAGED, user_folder()):
        if (folder / file).is_file():
            return folder / file
    raise ArtifactError(
        f"The reference statistics of {entry.title}, {file}, are neither in {PACKAGED} nor in {user_folder()} "
        f"(set {VARIABLE} to look elsewhere). They are made once, by\n  {entry.command(extractor)}"
    )
