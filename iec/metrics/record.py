"""A score with all that it depends on, as JSON."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iec.errors import ArtifactError
from iec.files import write_atomic
from iec.metrics.features import Extractor
from iec.metrics.inception_score import SHUFFLE_SEED, splits_for
from iec.metrics.reference import Reference
from iec.metrics.scores import Score

PACKAGES = ("iec", "torch", "timm", "numpy", "scipy")


def installed_versions() -> dict[str, str]:
    """Of Python and of the packages that a score depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@dataclass(frozen=True)
class Record:
    """Scores of the images of one manifest.

    protocol: name of the set of rules (extractor, reference, scores). seed: the run's; image n comes from (seed, n), n = 0 .. N-1.
    manifest_hash: of the list of images that were scored. resize, dtype: what the extractor does to an image, and computes in.
    """

    protocol: str
    scores: dict[str, Score]
    n: int
    seed: int
    manifest_hash: str
    reference_hash: str
    extractor_hash: str
    resize: str
    dtype: str = "float32"
    inception_shuffle_seed: int = SHUFFLE_SEED
    inception_splits: int = 1
    versions: dict[str, str] = field(default_factory=installed_versions)

    @staticmethod
    def of(
        protocol: str, scores: dict[str, Score], seed: int, manifest_hash: str, reference: Reference, extractor: Extractor
    ) -> "Record":
        """The record of `iec.metrics.scores.score`'s result. Raises `ArtifactError` if the scores have different N."""
        counts = {value.n for value in scores.values()}
        if len(counts) != 1:
            raise ArtifactError(f"Scores of different sets of images cannot share a record: N = {sorted(counts)}. Score again.")
        n = counts.pop()
        resize = f"{reference.resolution} -> {extractor.identity['input_size']}: {extractor.identity['resize']}"
        hashes = manifest_hash, reference.hash, extractor.hash
        return Record(protocol, scores, n, seed, *hashes, resize, inception_splits=splits_for(n))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``scores`` is name -> {label, value, low, high, ...}."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write JSON atomically. A missing interval (no resamples) is written as NaN, as Python's json does."""
        text = json.dumps(self.as_dict(), indent=2) + "\n"
        write_atomic(path, lambda file: file.write(text.encode()))

    @staticmethod
    def read(path: Path) -> "Record":
        """Raises `ArtifactError` if the file is missing, damaged, or not a record."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            scores = {name: Score(**value) for name, value in values.pop("scores").items()}
            return Record(scores=scores, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{path} is not a record of scores ({error}). Delete it and score again.") from error
