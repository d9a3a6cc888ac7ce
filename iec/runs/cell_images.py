"""The images of a cell's folder (iec/runs/store.py) as a source."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iec.errors import StoreError
from iec.io.files import canonical_hash, sha256
from iec.io.records import read_record
from iec.metrics.clip_score import CLIP
from iec.metrics.images.sources import AS_STORED, BLOCK
from iec.metrics.record import Record
from iec.runs.records import MANIFEST, Commit, Manifest

COMMIT = re.compile(r"(\d+)-\d+\.json")
"""Name of the record of a shard."""


@dataclass(frozen=True)
class Shard:
    """``count`` images from ``start`` on. sha256: the file's."""

    path: Path
    start: int
    count: int
    sha256: str


@dataclass(frozen=True)
class CellSource:
    """Images 0 .. N - 1 of a cell. Every shard is checked against its commit record before it is used."""

    shards: Sequence[Shard]
    label: str
    resolution: int
    channels: int
    preprocess = AS_STORED

    @classmethod
    def open(cls, folder: Path) -> "CellSource":
        """Raises `StoreError` when the cell is not finished: no shards, some missing between others, or no manifest yet."""
        shards: list[Shard] = []
        names = ((COMMIT.fullmatch(path.name), path) for path in (folder / "shards").glob("*.json"))
        for start, path in sorted((int(name[1]), path) for name, path in names if name is not None):
            commit, begins = read_record(path, Commit), sum(shard.count for shard in shards)
            if commit is None or start != begins:
                raise StoreError(f"{folder} is not finished: image {begins} is missing. Run the cell again, it goes on from there.")
            shards.append(Shard(path.with_suffix(".npz"), start, commit.count, commit.sha256))
        if not shards:
            raise StoreError(f"{folder} holds no finished shards. Give the folder that has cell.json in it, or run the cell.")
        if read_record(folder / MANIFEST, Manifest) is None:
            raise StoreError(f"{folder} is not finished: it has no usable manifest.json. Run it again, it goes on from there.")
        _, height, _, channels = _read(shards[0]).shape
        return cls(tuple(shards), f"cell {folder.resolve().name}", height, channels)

    @property
    def state(self) -> str:
        return canonical_hash([shard.sha256 for shard in self.shards])

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def blocks(self, start: int = 0, stop: int | None = None, skipped: list[str] | None = None) -> Iterator[np.ndarray]:
        """See `iec.metrics.images.sources.Source`. Raises `StoreError` for a damaged shard."""
        stop = len(self) if stop is None else stop
        for shard in self.shards:
            low, high = max(start - shard.start, 0), min(stop - shard.start, shard.count)
            if low < high:
                images = _read(shard)[low:high]
                for k in range(0, len(images), BLOCK):
                    yield images[k : k + BLOCK]


def stored_clip_score(folder: Path, protocol: str, n: int) -> Record | None:
    """The cell's own record with a CLIP score of all its n images, which needs their prompts; None if there is none."""
    manifest = read_record(folder / MANIFEST, Manifest)
    if manifest is None or manifest.num_images != n:
        return None
    for path in (folder / "scores" / protocol / f"{n}.json", folder / "scores.json"):
        record = read_record(path, Record)
        if record is None or CLIP not in record.scores:
            continue
        if (record.protocol, record.n, record.manifest_hash) == (protocol, n, manifest.hash):
            return record
    return None


def _read(shard: Shard) -> np.ndarray:
    if not shard.path.is_file() or sha256(shard.path) != shard.sha256:
        raise StoreError(f"{shard.path} is damaged or missing. Run the cell again: the shard is found damaged and redone.")
    with np.load(shard.path, allow_pickle=False) as file:
        return file["images"]
