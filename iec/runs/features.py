"""Features of a cell's images: extracted once, by one process or by many, and kept in CELL/features.npz."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from iec.io.cores import intra_op_threads
from iec.io.files import write_atomic
from iec.io.progress import stage
from iec.io.workers import Send, run_workers
from iec.metrics.extractors.features import Extractor, Features, extract, regroup
from iec.metrics.protocol import protocol
from iec.runs.cell import Cell
from iec.runs.parallel import UNSPLIT
from iec.runs.store import Store
from iec.runs.worker import PRELOAD

FEATURES = ("pooled", "spatial", "logits")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def features_of(cell: Cell, store: Store, extractor: Extractor) -> Features:
    """Of all images of the cell, in order; the kept ones, if they are of these images or of more that begin with these.

    On a CPU by as many processes as are of use. Raises `MetricError` and `iec.io.workers.WorkerError`.
    """
    path, digests = store.folder / "features.npz", _digests(_images(cell, store))
    stored = _read_features(path, extractor.hash, digests)
    if stored is not None:
        return Features(**stored, resolution=cell.card.resolution, extractor=extractor.hash)
    places = cell.split.places(-(-cell.num_images // extractor.batch), extractor.batch) if cell.device.type == "cpu" else ()
    with stage("features", cell.num_images) as advance:

        def count(images: int) -> None:
            for _ in range(images):
                advance()

        if len(places) > 1:
            features = extract(_images(cell, store), _Extracted(extractor, _extract_in_processes(cell, len(places), count)))
        else:
            features = extract(_images(cell, store), extractor, count)
    arrays: dict[str, Any] = {name: getattr(features, name) for name in FEATURES}
    key = np.array(extractor.hash)
    write_atomic(path, lambda file: np.savez(file, extractor=key, digests=digests, **arrays))
    return features


class _Extracted:
    """An extractor whose batches are extracted already, in order."""

    def __init__(self, extractor: Extractor, batches: Iterable[Arrays]) -> None:
        self.name, self.label, self.batch = extractor.name, extractor.label, extractor.batch
        self.identity, self.hash = extractor.identity, extractor.hash
        self.batches = iter(batches)

    def __call__(self, images: np.ndarray) -> Arrays:
        return next(self.batches)


@dataclass(frozen=True)
class _Part:
    """The extractor's batches index, index + count, index + 2 count, .. of the cell. config: plain values."""

    config: dict[str, Any]
    index: int
    count: int


def _extract_in_processes(cell: Cell, count: int, advance: Callable[[int], None]) -> list[Arrays]:
    """``advance`` is called with the images of each batch. Of all batches, in order."""
    config: Any = OmegaConf.to_container(OmegaConf.merge(cell.config, UNSPLIT, {"logger": {"name": "none"}}), resolve=True)
    extracted: dict[int, Arrays] = {}

    def receive(message: tuple[int, Arrays]) -> None:
        k, extracted[k] = message
        advance(len(extracted[k][0]))

    run_workers(_extract, {f"cpu, process {k}": _Part(config, k, count) for k in range(count)}, receive, preload=PRELOAD)
    return [extracted[k] for k in sorted(extracted)]


def _extract(part: _Part, send: Send) -> None:
    """In a process: sends (k, features) of each of its batches k."""
    cell = Cell.from_config(OmegaConf.create(part.config))
    assert cell.metrics is not None  # or nothing would be extracted
    extractor = protocol(cell.metrics.protocol).extractor(cell.device)
    with intra_op_threads(cell.split.threads):
        for k, batch in enumerate(regroup(_images(cell, Store.open(cell.folder, cell.identity)), extractor.batch)):
            if k % part.count == part.index:
                send((k, extractor(batch)))


def _images(cell: Cell, store: Store) -> Iterator[np.ndarray]:
    return store.read_images(cell.batches, cell.num_images)


def _digests(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """SHA-256 of each image, [N]."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for block in blocks for image in block])


def _read_features(path: Path, extractor: str, digests: np.ndarray) -> dict[str, np.ndarray] | None:
    """Of the images with these digests, if the file begins with them. None if it is missing, damaged, or of other images or another
    extractor: the features are computed again then.
    """
    n = len(digests)
    try:
        with np.load(path, allow_pickle=False) as file:
            fits = str(file["extractor"]) == extractor and np.array_equal(file["digests"][:n], digests)
            return {name: file[name][:n] for name in FEATURES} if fits else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
