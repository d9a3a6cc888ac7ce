"""Scores of a cell: a record for each number of images reused while they are the same."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

from iec.errors import ArtifactError, MetricError
from iec.metrics.clip_score import CLIPScorer, clip_score
from iec.metrics.extractors.features import Extractor
from iec.metrics.frechet import FewSamplesWarning
from iec.metrics.protocol import Protocol, protocol
from iec.metrics.record import Record
from iec.metrics.references.reference import Reference, load_reference, reference_path
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
    """A protocol, its extractor, the reference statistics made with it, the names of the scores to give, and the CLIP model
    of a CLIP score if one is asked for.
    """

    protocol: Protocol
    extractor: Extractor
    reference: Reference
    names: tuple[str, ...]
    clip: CLIPScorer | None = None

    @classmethod
    def open(cls, cell: Cell) -> "Scorer":
        """Raises `ConfigError` for a score that the protocol cannot give, `WeightsError` or `ArtifactError` if the extractor's
        weights or the reference are missing or do not fit, `MetricError` if a requested score's part of the reference is missing or
        the cell has too few images for it.

        Default scores that the reference has no part for are left out, and the log says so.
        """
        metrics = _metrics(cell)
        rules, requested = protocol(metrics.protocol), metrics.scores
        names = rules.default if requested is None else requested
        rules.check(names)
        extractor = rules.extractor(cell.device)
        path = reference_path(cell.card.reference, extractor)
        reference = load_reference(path, extractor, resolution=cell.card.resolution)
        if requested is None:
            given = available(names, reference)
            if given != names:
                log.warning("note: %s has no parts for %s", path, ", ".join(name for name in names if name not in given))
            names = given
        if "text_encoder" in cell.card.components and cell.model.prompts is None:
            log.warning(
                "note: model.prompts is not set: images of the package's own prompts are compared with %s. For COCO's captions use "
                "model.prompts=captions_val2014.json.",
                cell.card.reference,
            )
        require_parts(names, reference)
        require_images(names, cell.num_images, reference, rules.rules)
        clip = None if metrics.clip is None else CLIPScorer(metrics.clip, cell.device)
        return cls(rules, extractor, reference, names, clip)

    def score(self, cell: Cell, store: Store, manifest: Manifest) -> Record:
        """The record of the cell's images, from disk if it is about these images, this extractor and this reference."""
        stored = stored_record(cell, manifest)
        clip = None if self.clip is None else self.clip.identity
        current = self.extractor.hash, self.reference.hash, clip
        if stored is not None and (stored.extractor_hash, stored.reference_hash, stored.clip) == current:
            return stored
        features = features_of(cell, store, self.extractor)
        if not len(features) == cell.num_images == manifest.num_images:
            raise MetricError(
                f"{len(features)} images were scored, {cell.num_images} were asked for and {manifest.num_images} are listed in "
                f"{store.folder / 'manifest.json'}. Run the same command again."
            )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewSamplesWarning)
            scores = self.protocol.score(features, self.reference, self.names, bootstrap=_metrics(cell).bootstrap)
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            log.warning("note: %s", message)
        if self.clip is not None:
            scores["clip"] = self._clip_score(cell, store, self.clip)
        record = Record.of(
            protocol=self.protocol.name,
            scores=scores,
            seed=cell.seed,
            manifest_hash=manifest.hash,
            reference=self.reference,
            extractor=self.extractor,
            rules=self.protocol.rules,
            requested=_requested(cell),
            clip=clip,
        )
        for path in _record_paths(cell):
            record.save(path)
        return record

    def _clip_score(self, cell: Cell, store: Store, scorer: CLIPScorer) -> Score:
        prompts, n = prompts_of(cell.model.prompts), cell.num_images
        captions = [prompts.of(k) for k in range(n)]
        return clip_score(store.read_images(cell.batches, n), captions, scorer, _metrics(cell).bootstrap)


def stored_record(cell: Cell, manifest: Manifest) -> Record | None:
    """The cell's record if there is one about the manifest's images with the requested protocol, scores and resamples."""
    return next((record for path in _record_paths(cell) if (record := _fitting(path, cell, manifest)) is not None), None)


def _fitting(path: Path, cell: Cell, manifest: Manifest) -> Record | None:
    try:
        record = Record.read(path)
    except ArtifactError:
        return None
    resamples = {score.resamples for score in record.scores.values()}
    metrics = _metrics(cell)
    requested = (manifest.hash, metrics.protocol, {metrics.bootstrap}, _requested(cell), metrics.clip is not None)
    stored = (record.manifest_hash, record.protocol, resamples, record.requested, record.clip is not None)
    return record if stored == requested else None


def _metrics(cell: Cell) -> Metrics:
    assert cell.metrics is not None  # a cell without scores has no scorer, and no record is asked for
    return cell.metrics


def _requested(cell: Cell) -> list[str] | None:
    """``metrics.scores`` as a record holds them; None: the protocol's default."""
    scores = _metrics(cell).scores
    return None if scores is None else list(scores)


def _record_paths(cell: Cell) -> tuple[Path, Path]:
    """The latest scores, and those of this number of images, which stay when another table asks for another number."""
    return cell.folder / "scores.json", cell.folder / "scores" / f"{cell.num_images}.json"
