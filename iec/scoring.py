"""Scores of a cell: features extracted once and kept, the record reused while it is about the same images."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iec.cell import Cell
from iec.errors import ArtifactError
from iec.files import write_atomic
from iec.metrics.extractor import EffNetLite0
from iec.metrics.features import Features, extract
from iec.metrics.frechet import FewSamplesWarning
from iec.metrics.record import Record
from iec.metrics.reference import Reference, load_reference, reference_path
from iec.metrics.scores import score_features
from iec.progress import stage
from iec.store import Store

log = logging.getLogger(__name__)
FEATURES = ("pooled", "spatial", "logits")


@dataclass(frozen=True)
class Scorer:
    """An extractor and the reference statistics made with it."""

    extractor: EffNetLite0
    reference: Reference

    @classmethod
    def open(cls, cell: Cell) -> "Scorer":
        """Raises `WeightsError` or `ArtifactError` if the extractor's weights or the reference are missing or do not fit."""
        extractor = EffNetLite0(cell.device)
        path = reference_path(cell.card.reference, extractor)
        return cls(extractor, load_reference(path, extractor, resolution=cell.card.resolution))

    def score(self, cell: Cell, store: Store, manifest: dict[str, Any]) -> dict[str, Any]:
        """The record of the cell's images, from disk if it is about these images, this extractor and this reference."""
        held = stored_record(cell, manifest)
        if held is not None and (held["extractor_hash"], held["reference_hash"]) == (self.extractor.hash, self.reference.hash):
            return held
        features = self.features(cell, store, manifest["hash"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewSamplesWarning)
            scores = score_features(features, self.reference, self.extractor.label, bootstrap=cell.config.metrics.bootstrap)
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            log.warning("note: %s", message)
        record = Record.of(cell.metrics, scores, cell.seed, manifest["hash"], self.reference, self.extractor)
        record.save(_record_path(cell))
        return record.as_dict()

    def features(self, cell: Cell, store: Store, images_hash: str) -> Features:
        """Of all images of the cell, in order; kept in CELL/features.npz while the images stay the same."""
        path, key = store.folder / "features.npz", f"{self.extractor.hash} {images_hash}"
        held = _read_features(path, key)
        if held is not None:
            return Features(**held, resolution=cell.card.resolution, extractor=self.extractor.hash)
        with stage("features", cell.num_images) as advance:

            def count(images: int) -> None:
                for _ in range(images):
                    advance()

            features = extract(store.read_images(cell.batches, cell.num_images), self.extractor, count)
        arrays: dict[str, Any] = {name: getattr(features, name) for name in FEATURES}
        write_atomic(path, lambda file: np.savez(file, key=np.array(key), **arrays))
        return features


def stored_record(cell: Cell, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The cell's record if there is one about the manifest's images with the wanted protocol and resamples."""
    try:
        record = Record.read(_record_path(cell))
    except ArtifactError:
        return None
    resamples = {score.resamples for score in record.scores.values()}
    wanted = (manifest["hash"], cell.metrics, {cell.config.metrics.bootstrap})
    return record.as_dict() if (record.manifest_hash, record.protocol, resamples) == wanted else None


def _record_path(cell: Cell) -> Path:
    return cell.folder / "scores.json"


def _read_features(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """None if the file is missing, damaged, or of other images or another extractor: the features are computed again then."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in FEATURES} if str(file["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError):
        return None
