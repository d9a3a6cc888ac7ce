"""Finished images on disk: shards that are complete or absent, whatever is killed when.

    CELL/cell.json                  what the folder holds (refused if it is another cell)
    CELL/shards/000000-000031.npz   images uint8 [N, H, W, C] and indices int64 [N]
    CELL/shards/000000-000031.json  its commit record: sha256, network calls, seconds, machine
    CELL/traces/000000-000031.npz   states float32 [T + 1, n, C, H, W] of the first images
    CELL/manifest.json              the list of shards with their hashes, and one hash over them

A shard counts as finished when its commit record is there and its bytes have the recorded hash; if not it is made again. Two
processes on one folder write the same bytes under unique temporary names and rename them, so that the last one wins without harm.
"""

import hashlib
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iec.errors import StoreError
from iec.io.files import read_json, require_folder, sha256, write_atomic, write_json
from iec.io.records import read_record
from iec.runs.batches import Samples
from iec.runs.records import MANIFEST, Commit, Manifest

STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class Store:
    """The folder of one cell. `open` creates or checks it."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any]) -> "Store":
        """Raises `StoreError` if the folder holds another cell or cannot be written."""
        record = folder / "cell.json"
        try:
            # in this order, and without temporaries: another process may be making the folder at this moment
            occupied = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        except OSError as error:
            raise StoreError(f"{folder} cannot be used: {error.strerror}. Choose another folder (paths.output=DIR).") from error
        stored = read_json(record)
        if not isinstance(stored, dict):
            if occupied:
                raise StoreError(f"{folder} is not empty and holds no usable cell.json. Choose another folder (paths.cell=DIR).")
            require_folder(folder, "paths.output")
            write_json(record, identity)
        elif stored != identity:
            differing = sorted(key for key in {*stored, *identity} if stored.get(key) != identity.get(key))
            raise StoreError(
                f"{folder} holds another cell; they differ in {', '.join(differing)}. Choose another folder (paths.cell=DIR), or "
                "leave paths.cell unset, so that every cell gets a folder of its own."
            )
        for stale in folder.rglob(".*.tmp"):  # left by a kill; a younger one may belong to a process that is writing it
            with suppress(FileNotFoundError):
                if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                    stale.unlink()
        return cls(folder)

    def shard(self, indices: tuple[int, ...]) -> Path:
        """The npz of a micro-batch; its commit record has the suffix ``.json``."""
        return self.folder / "shards" / f"{indices[0]:06d}-{indices[-1]:06d}.npz"

    def trace(self, indices: tuple[int, ...]) -> Path:
        return self.folder / "traces" / self.shard(indices).name

    def commit(self, indices: tuple[int, ...]) -> Commit | None:
        """None if the micro-batch has no commit record, or one that cannot be used."""
        return read_record(self.shard(indices).with_suffix(".json"), Commit)

    def kept(self, indices: tuple[int, ...]) -> tuple[int, int]:
        """How many images and trajectories of the micro-batch were stored, undamaged or not."""
        commit = self.commit(indices)
        return (0, 0) if commit is None else (commit.count, commit.trace)

    def is_finished(self, indices: tuple[int, ...], count: int, trace: int) -> bool:
        """Whether at least ``count`` images and ``trace`` trajectories of the micro-batch are there, undamaged."""
        commit = self.commit(indices)
        if commit is None or commit.count < count or commit.trace < trace:
            return False
        expected = {self.shard(indices): commit.sha256, self.trace(indices): commit.trace_sha256}
        return all(digest is None or (file.is_file() and sha256(file) == digest) for file, digest in expected.items())

    def write(self, indices: tuple[int, ...], samples: Samples, count: int, machine: str) -> None:
        """Keep the first ``count`` images of the micro-batch, or as many as were kept before if those were more, and its
        trajectories. Raises `StoreError`.
        """
        path, trace = self.shard(indices), samples.states.shape[1]
        count = max(count, self.kept(indices)[0])
        kept = np.asarray(indices[:count], np.int64)
        write_atomic(path, lambda file: np.savez(file, images=samples.images[:count], indices=kept))
        if trace:
            write_atomic(self.trace(indices), lambda file: np.savez(file, states=samples.states))
        commit = Commit(
            sha256=sha256(path),
            trace_sha256=sha256(self.trace(indices)) if trace else None,
            count=count,
            computed=len(indices),
            trace=trace,
            calls=samples.calls,
            seconds=samples.seconds,
            machine=machine,
        )
        write_json(path.with_suffix(".json"), asdict(commit))

    def write_manifest(self, batches: list[tuple[int, ...]], num_images: int) -> Manifest:
        """Write `manifest`, and return it."""
        manifest = self.manifest(batches, num_images)
        write_json(self.folder / MANIFEST, manifest.as_dict())
        return manifest

    def manifest(self, batches: list[tuple[int, ...]], num_images: int) -> Manifest:
        """Of finished shards. Raises `StoreError` if one is not finished."""
        commits: dict[str, Commit] = {}
        for indices in batches:
            if (commit := self.commit(indices)) is None:
                raise StoreError(f"{self.shard(indices)} has no commit record. Run the cell again: the shard is made again.")
            commits[self.shard(indices).name] = commit
        pixels = hashlib.sha256()
        for images in self.read_images(batches, num_images):
            pixels.update(images.tobytes())
        return Manifest.of(commits, num_images, pixels.hexdigest())

    def read_images(self, batches: list[tuple[int, ...]], num_images: int) -> Iterator[np.ndarray]:
        """The images 0 .. num_images - 1, a shard at a time. Raises `StoreError` if a shard cannot be read."""
        for indices in batches:
            with self._open(self.shard(indices)) as shard:
                yield shard["images"][: num_images - indices[0]]

    def read_states(self, batches: list[tuple[int, ...]], count: int) -> np.ndarray:
        """Trajectories of the images 0 .. count - 1: float32 [T + 1, count, C, H, W]."""
        parts = []
        for indices in batches:
            if indices[0] < count:
                with self._open(self.trace(indices)) as file:
                    parts.append(file["states"])
        return np.concatenate(parts, axis=1)[:, :count]

    def _open(self, path: Path) -> Any:
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"{path} cannot be read ({error}). Run the cell again: the shard is found damaged and redone."
            ) from error
