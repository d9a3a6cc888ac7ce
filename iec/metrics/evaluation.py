"""One protocol made ready: its extractor, the reference statistics to compare with, and the scores to give."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iec.metrics.extractors.features import Extractor, Features
from iec.metrics.frechet import FewSamplesWarning
from iec.metrics.protocol import Protocol
from iec.metrics.record import Record
from iec.metrics.references.reference import Reference
from iec.metrics.scores import Score


@dataclass(frozen=True)
class Evaluation:
    """names: of the scores to give. requested: as they were asked for, for records; None: the protocol's default ones."""

    protocol: Protocol
    extractor: Extractor
    reference: Reference
    names: tuple[str, ...]
    requested: Sequence[str] | None = None

    def scores(self, features: Features, bootstrap: int) -> tuple[dict[str, Score], list[str]]:
        """Of features by its extractor, and what there is to say of few images."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewSamplesWarning)
            scores = self.protocol.score(features, self.reference, self.names, bootstrap=bootstrap)
        return scores, list(dict.fromkeys(str(warning.message) for warning in caught))

    def record(
        self, scores: Mapping[str, Score], seed: int | None, manifest_hash: str, clip: dict[str, Any] | None = None
    ) -> Record:
        """Of its `scores`. seed: of the images. manifest_hash: of their pixels. clip: identity of the model of a CLIP score."""
        return Record.of(
            protocol=self.protocol.name,
            scores=dict(scores),
            seed=seed,
            manifest_hash=manifest_hash,
            reference=self.reference,
            extractor=self.extractor,
            rules=self.protocol.rules,
            requested=None if self.requested is None else list(self.requested),
            clip=clip,
        )
