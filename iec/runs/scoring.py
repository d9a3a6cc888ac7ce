"""Scores of a cell by its protocol and by those beside it: a record for each number of images, reused while they are the same.

CELL/scores.json              of the protocol, the latest
CELL/scores/PROTOCOL/N.json   of any protocol, for this number of images
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iec.errors import ArtifactError, MetricError
from iec.metrics.clip_score import CLIP, CLIPScorer, clip_score
from iec.metrics.evaluation import Evaluation
from iec.metrics.extractors.features import Features
from iec.metrics.fid import FID
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.influence import influence
from iec.metrics.protocol import protocol
from iec.metrics.record import Record
from iec.metrics.references.reference import load_reference, reference_path
from iec.metrics.scores import Score, available, require_images, require_parts
from iec.models.prompts import prompts_of
from iec.runs.cell import Cell
from iec.runs.features import features_of
from iec.runs.metrics import Metrics
from iec.runs.records import Manifest
from iec.runs.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """evaluations: of the cell's protocol, and of those beside it. clip: the model of a CLIP score if one is asked for."""

    evaluations: tuple[Evaluation, ...]
    clip: CLIPScorer | None = None

    @classmethod
    def open(cls, cell: Cell) -> "Scorer":
        """Raises `ConfigError` for a score that the protocol cannot give, `WeightsError` or `ArtifactError` if the extractor's
        weights or the reference are missing or do not fit, `MetricError` if a requested score's part of the reference is missing or
        the cell has too few images for it.

        Default scores that the reference has no part for, and default protocols beside the cell's that have no reference, are left
        out, and the log says so.
        """
        metrics = _metrics(cell)
        evaluations = tuple(_evaluations(cell))
        if "text_encoder" in cell.card.components and cell.model.prompts is None:
            log.warning(
                "note: model.prompts is not set: images of the package's own prompts are compared with %s. For COCO's captions use "
                "model.prompts=captions_val2014.json.",
                cell.card.reference,
            )
        clip = None if metrics.clip is None else CLIPScorer(metrics.clip, cell.device)
        return cls(evaluations, clip)

    def score(self, cell: Cell, store: Store, manifest: Manifest) -> tuple[Record, ...]:
        """The records of the cell's images, the protocol's first. Those on disk that are about these images, this extractor and
        this reference are taken; the others are made in one pass over the images.
        """
        records = {evaluation.protocol.name: self._stored(cell, manifest, evaluation) for evaluation in self.evaluations}
        missing = [evaluation for evaluation in self.evaluations if records[evaluation.protocol.name] is None]
        if missing:
            features = features_of(cell, store, {e.protocol.name: e.extractor for e in missing})
            for evaluation in missing:
                own = features[evaluation.protocol.name]
                records[evaluation.protocol.name] = self._scored(cell, store, manifest, evaluation, own)
        return tuple(record for record in records.values() if record is not None)

    def _stored(self, cell: Cell, manifest: Manifest, evaluation: Evaluation) -> Record | None:
        record = stored_record(cell, manifest, evaluation.protocol.name)
        if record is None:
            return None
        current = evaluation.extractor.hash, evaluation.reference.hash, self._clip(evaluation.protocol.name, cell)
        return record if (record.extractor_hash, record.reference_hash, record.clip) == current else None

    def _clip(self, name: str, cell: Cell) -> dict[str, Any] | None:
        """The identity of the model of the CLIP score, which is given once: with the scores of the cell's protocol."""
        return None if self.clip is None or name != _metrics(cell).protocol else self.clip.identity

    def _scored(self, cell: Cell, store: Store, manifest: Manifest, evaluation: Evaluation, features: Features) -> Record:
        """Also saved."""
        if not len(features) == cell.num_images == manifest.num_images:
            raise MetricError(
                f"{len(features)} images were scored, {cell.num_images} were asked for and {manifest.num_images} are listed in "
                f"{store.folder / 'manifest.json'}. Run the same command again."
            )
        name, metrics = evaluation.protocol.name, _metrics(cell)
        scores, notes = evaluation.scores(features, metrics.bootstrap)
        if name == metrics.protocol:
            for note in notes:
                log.warning("note: %s", note)
        clip = self._clip(name, cell)
        if clip is not None and self.clip is not None:
            scores[CLIP] = self._clip_score(cell, store, self.clip)
        record = evaluation.record(scores, cell.seed, manifest.hash, clip)
        for path in _written(cell, name):
            record.save(path)
        return record

    def _clip_score(self, cell: Cell, store: Store, scorer: CLIPScorer) -> Score:
        prompts, n = prompts_of(cell.model.prompts), cell.num_images
        captions = [prompts.of(k) for k in range(n)]
        return clip_score(store.read_images(cell.batches, n), captions, scorer, _metrics(cell).bootstrap)


def fid_influence(cell: Cell, store: Store) -> tuple[str, np.ndarray] | None:
    """(label of the FID of the cell's protocol, what each image moves it by to first order [N], see `iec.metrics.influence`). None
    for a cell without that score. Features that are not kept are extracted.
    """
    if cell.metrics is None:
        return None
    evaluation = next(_evaluations(cell))
    if FID.name not in evaluation.names or evaluation.reference.pooled is None:
        return None
    name = evaluation.protocol.name
    features = features_of(cell, store, {name: evaluation.extractor})[name].pooled
    moved = influence(features, GaussianStatistics.of(features), evaluation.reference.pooled)
    return FID.label.format(evaluation.extractor.label), moved


def _evaluations(cell: Cell) -> Iterator[Evaluation]:
    """Of the cell's protocol, and of those beside it; default ones only where their reference is there."""
    metrics = _metrics(cell)
    for name in metrics.protocols:
        rules, requested = protocol(name), metrics.requested(name)
        names = rules.default if requested is None else requested
        rules.check(names)
        extractor = rules.extractor(cell.device)
        try:
            path = reference_path(cell.card.reference, extractor)
        except ArtifactError as error:
            if name == metrics.protocol or metrics.beside is not None:
                raise
            log.warning("note: no scores of %s. %s", name, error)
            continue
        reference = load_reference(path, extractor, resolution=cell.card.resolution)
        if requested is None:
            given = available(names, reference)
            if given != names:
                log.warning("note: %s has no parts for %s", path, ", ".join(name for name in names if name not in given))
            names = given
        require_parts(names, reference)
        require_images(names, cell.num_images, reference, rules.rules)
        yield Evaluation(rules, extractor, reference, names, requested)


def stored_records(cell: Cell, manifest: Manifest) -> tuple[Record, ...]:
    """The cell's records that are there, see `stored_record`, the protocol's first; none at all without that one."""
    records = [stored_record(cell, manifest, name) for name in _metrics(cell).protocols]
    return () if records[0] is None else tuple(record for record in records if record is not None)


def stored_record(cell: Cell, manifest: Manifest, name: str) -> Record | None:
    """The record of a protocol if there is one about the manifest's images with the requested scores and resamples.

    Cells from before there were protocols beside have it in scores/N.json.
    """
    paths = (*_written(cell, name), cell.folder / "scores" / f"{cell.num_images}.json")
    return next((record for path in paths if (record := _fitting(path, cell, manifest, name)) is not None), None)


def _fitting(path: Path, cell: Cell, manifest: Manifest, name: str) -> Record | None:
    try:
        record = Record.read(path)
    except ArtifactError:
        return None
    resamples = {score.resamples for score in record.scores.values()}
    metrics = _metrics(cell)
    scores, clip = metrics.requested(name), metrics.clip is not None and name == metrics.protocol
    requested = (manifest.hash, name, {metrics.bootstrap}, None if scores is None else list(scores), clip)
    stored = (record.manifest_hash, record.protocol, resamples, record.requested, record.clip is not None)
    return record if stored == requested else None


def _metrics(cell: Cell) -> Metrics:
    assert cell.metrics is not None  # a cell without scores has no scorer, and no record is asked for
    return cell.metrics


def _written(cell: Cell, name: str) -> tuple[Path, ...]:
    """Where a protocol's record goes. The one of this number of images stays when another table asks for another number."""
    own = cell.folder / "scores" / name / f"{cell.num_images}.json"
    return (cell.folder / "scores.json", own) if name == _metrics(cell).protocol else (own,)
