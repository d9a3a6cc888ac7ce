"""The images of a cell's folder (iec/runs/store.py) as a source."""

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
        """The images that the manifest lists: of a cell that is being extended those that it had.

        Raises `StoreError` when the cell is not finished: no manifest yet, or a shard that is missing or was made anew since.
        """
        again = "Run the cell again, it goes on from there."
        manifest = read_record(folder / MANIFEST, Manifest)
        if manifest is None:
            if not any((folder / "shards").glob("*.json")):
                raise StoreError(f"{folder} holds no finished shards. Give the folder that has cell.json in it, or run the cell.")
            raise StoreError(f"{folder} is not finished: it has no usable {MANIFEST}. {again}")
        shards, begins = list[Shard](), 0
        for name in sorted(manifest.shards, key=_start):
            path = folder / "shards" / name
            commit = read_record(path.with_suffix(".json"), Commit)
            if commit is None or commit.sha256 != manifest.shards[name]:
                raise StoreError(f"{folder} is not finished: image {begins} is missing, or newer than {MANIFEST}. {again}")
            shards.append(Shard(path, begins, min(commit.count, manifest.num_images - begins), commit.sha256))
            begins += shards[-1].count
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


def _start(name: str) -> int:
    """The first image of a shard, by the name of its file."""
    return int(name.partition("-")[0])


def _read(shard: Shard) -> np.ndarray:
    if not shard.path.is_file() or sha256(shard.path) != shard.sha256:
        raise StoreError(f"{shard.path} is damaged or missing. Run the cell again: the shard is found damaged and redone.")
    with np.load(shard.path, allow_pickle=False) as file:
        return file["images"]
