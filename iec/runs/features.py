"""Features of a cell's images: extracted once, by one process or by many, and kept in CELL/features/EXTRACTOR.npz."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from iec.io.cores import intra_op_threads
from iec.io.files import write_atomic
from iec.io.progress import stage
from iec.io.workers import Send, run_workers
from iec.metrics.extractors.features import Arrays, Extractor, Features, by_each, extract_each, regroup
from iec.metrics.metric import FEATURES
from iec.metrics.protocol import protocol
from iec.runs.cell import Cell
from iec.runs.parallel import UNSPLIT
from iec.runs.store import Store
from iec.runs.worker import PRELOAD


def features_of(cell: Cell, store: Store, extractors: Mapping[str, Extractor]) -> dict[str, Features]:
    """Of all images of the cell, in order, by the extractor of each protocol; the kept ones, if they are of these images or of more
    that begin with these. The others in one pass over the images for all extractors with batches of one size.

    On a CPU by as many processes as are of use. Raises `MetricError` and `iec.io.workers.WorkerError`.
    """
    digests = _digests(_images(cell, store))
    features: dict[str, Features] = {}
    missing: dict[int, dict[str, tuple[str, Extractor]]] = {}  # by batch size; two protocols may have one extractor
    for name, extractor in extractors.items():
        stored = _read_features(store.folder, extractor, digests)
        if stored is None:
            missing.setdefault(extractor.batch, {})[extractor.hash] = name, extractor
        else:
            features[extractor.hash] = Features(**stored, resolution=cell.card.resolution, extractor=extractor.hash)
    for group in missing.values():
        for own, (_, extractor) in zip(_extracted(cell, store, dict(group.values())), group.values(), strict=True):
            features[extractor.hash] = own
            arrays: dict[str, Any] = {name: getattr(own, name) for name in FEATURES}
            _write_features(store.folder, extractor, digests, arrays)
    return {name: features[extractor.hash] for name, extractor in extractors.items()}


def _extracted(cell: Cell, store: Store, extractors: Mapping[str, Extractor]) -> list[Features]:
    """By each extractor; their batches have one size. extractors: by protocol."""
    batch = next(iter(extractors.values())).batch
    places = cell.split.places(-(-cell.num_images // batch), batch) if cell.device.type == "cpu" else ()
    with stage("features", cell.num_images) as advance:

        def count(images: int) -> None:
            for _ in range(images):
                advance()

        if len(places) <= 1:
            return extract_each(_images(cell, store), list(extractors.values()), count)
        batches = _extract_in_processes(cell, tuple(extractors), len(places), count)
        each = zip(extractors.values(), zip(*batches, strict=True), strict=True)
        return extract_each(_images(cell, store), [_Extracted(extractor, own) for extractor, own in each])


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
    """The extractors' batches index, index + count, index + 2 count, .. of the cell. config: plain values. protocols: of the
    extractors.
    """

    config: dict[str, Any]
    protocols: tuple[str, ...]
    index: int
    count: int


def _extract_in_processes(cell: Cell, protocols: tuple[str, ...], count: int, advance: Callable[[int], None]) -> list[list[Arrays]]:
    """Of all batches, in order, by each protocol's extractor. ``advance`` is called with the images of each batch."""
    config: Any = OmegaConf.to_container(OmegaConf.merge(cell.config, UNSPLIT, {"logger": {"name": "none"}}), resolve=True)
    extracted: dict[int, list[Arrays]] = {}

    def receive(message: tuple[int, list[Arrays]]) -> None:
        k, extracted[k] = message
        advance(len(extracted[k][0][0]))

    parts = {f"cpu, process {k}": _Part(config, protocols, k, count) for k in range(count)}
    run_workers(_extract, parts, receive, preload=PRELOAD)
    return [extracted[k] for k in sorted(extracted)]


def _extract(part: _Part, send: Send) -> None:
    """In a process: sends (k, features by each extractor) of each of its batches k."""
    cell = Cell.from_config(OmegaConf.create(part.config))
    extractors = [protocol(name).extractor(cell.device) for name in part.protocols]
    with intra_op_threads(cell.split.threads):
        for k, batch in enumerate(regroup(_images(cell, Store.open(cell.folder, cell.identity)), extractors[0].batch)):
            if k % part.count == part.index:
                send((k, by_each(extractors, batch)))


def _images(cell: Cell, store: Store) -> Iterator[np.ndarray]:
    return store.read_images(cell.batches, cell.num_images)


def _digests(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """SHA-256 of each image, [N]."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for block in blocks for image in block])


def _write_features(folder: Path, extractor: Extractor, digests: np.ndarray, arrays: Mapping[str, Any]) -> None:
    key = np.array(extractor.hash)
    path = folder / "features" / f"{extractor.name}.npz"
    write_atomic(path, lambda file: np.savez(file, extractor=key, digests=digests, **arrays))


def _read_features(folder: Path, extractor: Extractor, digests: np.ndarray) -> dict[str, np.ndarray] | None:
    """Of the images with these digests, if a file begins with them. None if it is missing, damaged, or of other images or another
    extractor: the features are computed again then. Cells from before there were protocols beside have them in features.npz.
    """
    paths = folder / "features" / f"{extractor.name}.npz", folder / "features.npz"
    return next((found for path in paths if (found := _read(path, extractor.hash, digests)) is not None), None)


def _read(path: Path, extractor: str, digests: np.ndarray) -> dict[str, np.ndarray] | None:
    n = len(digests)
    try:
        with np.load(path, allow_pickle=False) as file:
            fits = str(file["extractor"]) == extractor and np.array_equal(file["digests"][:n], digests)
            return {name: file[name][:n] for name in FEATURES} if fits else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
