"""A score with all that it depends on, as JSON."""

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iec.errors import ArtifactError
from iec.io.environment import installed
from iec.io.files import write_text
from iec.io.records import parse
from iec.metrics.extractors.features import Extractor
from iec.metrics.inception_score import CHUNKS, SHUFFLE_SEED
from iec.metrics.metric import OWN_RULES, Rules
from iec.metrics.references.reference import Reference
from iec.metrics.scores import Score

PACKAGES = ("iec", "torch", "timm", "torch-fidelity", "numpy", "scipy")


def installed_versions() -> dict[str, str]:
    """Of Python and of the packages that a score depends on; those that are not installed are left out."""
    return {"python": platform.python_version(), **installed(PACKAGES)}


@dataclass(frozen=True)
class Record:
    """Scores of the images of one manifest.

    protocol: name of the set of rules (extractor, reference, scores). seed: the run's; image n comes from (seed, n), n = 0 .. N-1.
    manifest_hash: of the images that were scored. resize, dtype: what the extractor does to an image, and computes in.
    inception_shuffle_seed: None in file order. rules: the protocol's `iec.metrics.metric.Rules`. requested: the scores that were
    asked for; None: the protocol's default ones. real_features: of how many real images the reference holds single features, which
    KID, precision and recall depend on. clip: the identity of the CLIP model of a CLIP score.
    """

    protocol: str
    scores: dict[str, Score]
    n: int
    seed: int | None
    manifest_hash: str
    reference_hash: str
    extractor_hash: str
    resize: str
    dtype: str = "float32"
    inception_shuffle_seed: int | None = SHUFFLE_SEED
    inception_splits: int | None = 1
    rules: dict[str, Any] = field(default_factory=lambda: asdict(OWN_RULES))
    requested: list[str] | None = None
    real_features: int | None = None
    clip: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=installed_versions)

    @staticmethod
    def of(
        protocol: str,
        scores: dict[str, Score],
        seed: int | None,
        manifest_hash: str,
        reference: Reference,
        extractor: Extractor,
        rules: Rules = OWN_RULES,
        requested: list[str] | None = None,
        clip: dict[str, Any] | None = None,
    ) -> "Record":
        """The record of `iec.metrics.scores.score`'s result.

        Raises `ArtifactError` if the scores have different N, or the extractor is not the reference's.
        """
        counts = {value.n for value in scores.values()}
        if len(counts) != 1:
            raise ArtifactError(f"Scores of different sets of images cannot share a record: N = {sorted(counts)}. Score again.")
        if extractor.hash != reference.extractor_hash:
            raise ArtifactError("These scores' extractor is not the reference's. Score again with the reference made with it.")
        n = counts.pop()
        return Record(
            protocol=protocol,
            scores=scores,
            n=n,
            seed=seed,
            manifest_hash=manifest_hash,
            reference_hash=reference.hash,
            extractor_hash=extractor.hash,
            resize=f"{reference.resolution} -> {extractor.identity['input_size']}: {extractor.identity['resize']}",
            inception_shuffle_seed=None if rules.chunks == "adm" else SHUFFLE_SEED,
            inception_splits=len(CHUNKS[rules.chunks](n)) if "is" in scores else None,
            rules=asdict(rules),
            requested=requested,
            real_features=None if reference.kid is None else len(reference.kid),
            clip=clip,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``scores`` is name -> {label, value, low, high, ...}."""
        return asdict(self) | {"scores": {name: score.as_dict() for name, score in self.scores.items()}}

    def save(self, path: Path) -> None:
        """Write JSON atomically. A missing interval (no resamples) is written as NaN, as Python's json does."""
        text = json.dumps(self.as_dict(), indent=2) + "\n"
        write_text(path, text)

    @staticmethod
    def read(path: Path) -> "Record":
        """Raises `ArtifactError` if the file is missing, damaged, or not a record."""
        try:
            return parse(Record, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is not a record of scores ({error}). Delete it and score again.") from error
