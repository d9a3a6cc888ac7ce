"""What is summed over a large set of images, a chunk at a time: mean and scatter of features, chosen features, hashes of pixels."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iec.errors import ArtifactError, MetricError
from iec.io.files import canonical_hash, write_atomic
from iec.metrics.extractors.features import Extractor, regroup
from iec.metrics.frechet import Moments
from iec.metrics.images.sources import Source, Tally

CHUNK = 1000
"""Images."""
KID_IMAGES, KID_SEED = 5000, 0
Open = Callable[[torch.device], Extractor]


@dataclass
class Sum:
    """Of the first ``chunks`` chunks.

    kid: pooled features of chosen images, float32. digests: sha256 of each chunk's pixels. skipped: names of damaged files.
    """

    chunks: int = 0
    pooled: Moments = field(default_factory=Moments)
    spatial: Moments = field(default_factory=Moments)
    kid: list[np.ndarray] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def join(self, other: "Sum") -> None:
        """Take in the chunks that come next."""
        self.chunks += other.chunks
        self.pooled.merge(other.pooled)
        self.spatial.merge(other.spatial)
        self.kid += other.kid
        self.digests += other.digests
        self.skipped += other.skipped

    @property
    def kid_features(self) -> np.ndarray | None:
        """float32 [M, d]."""
        return np.concatenate(self.kid) if self.kid else None

    def save(self, path: Path, job: str) -> None:
        """Atomically; ``job`` is the `Job.key`."""
        tensors = {"kid": self.kid_features} if self.kid else {}
        for name in ("pooled", "spatial"):
            moments = getattr(self, name)
            if moments.n:
                tensors |= {f"{name}_mean": moments.mean, f"{name}scatter": moments.scatter}
        state = {"chunks": self.chunks, "n": self.pooled.n, "digests": self.digests, "skipped": self.skipped, "job": job}
        data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata={"facts": json.dumps(state)})
        write_atomic(path, lambda file: file.write(data))

    @staticmethod
    def load(path: Path, job: str) -> "Sum":
        """Empty if there is no file. Raises `ArtifactError` for a damaged one, or one of another job."""
        try:
            with safe_open(path, framework="numpy") as file:
                state = json.loads((file.metadata() or {})["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except FileNotFoundError:
            return Sum()
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ArtifactError(f"{path} is damaged ({error}). Delete it and run the same command again.") from error
        if state["job"] != job:
            raise ArtifactError(
                f"{path} is the unfinished sum of other images, or of another extractor or preprocessing. Delete it, or choose "
                "another --output."
            )
        kid = [tensors["kid"]] if "kid" in tensors else []
        pooled, spatial = Moments(), Moments()
        for name, moments in (("pooled", pooled), ("spatial", spatial)):
            moments.n, moments.mean, moments.scatter = state["n"], tensors.get(f"{name}_mean"), tensors.get(f"{name}scatter")
        return Sum(state["chunks"], pooled, spatial, kid, state["digests"], state["skipped"])


@dataclass(frozen=True)
class Job:
    """What is summed. open: device -> extractor; it is sent to other processes. limit: the first ``limit`` files only.

    skip_damaged: leave out files that cannot be decoded, and list them, instead of stopping there.
    """

    source: Source
    open: Open
    extractor_hash: str
    limit: int | None = None
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and not 2 <= self.limit <= len(self.source):
            raise MetricError(f"--limit {self.limit} of {len(self.source)} images; choose 2 .. {len(self.source)}.")

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else self.limit

    @property
    def chunks(self) -> int:
        return -(-len(self) // CHUNK)

    @property
    def key(self) -> str:
        """Of everything that the sum depends on, so that a rest of another job is not continued."""
        source = self.source
        return canonical_hash(
            [source.label, source.state, str(source.preprocess), self.extractor_hash, len(self), CHUNK, self.skip_damaged]
        )

    def chunk(self, k: int, extractor: Extractor, progress: Callable[[int], None]) -> Sum:
        """Of images k CHUNK .. (k + 1) CHUNK - 1. ``progress`` is called with the images of each batch."""
        start, stop = k * CHUNK, min((k + 1) * CHUNK, len(self))
        sum_, tally, parts = Sum(chunks=1), Tally(), []
        blocks = self.source.blocks(start, stop, sum_.skipped if self.skip_damaged else None)
        for batch in regroup(tally.of(blocks), extractor.batch):
            parts.append(extractor(batch)[:2])
            progress(len(batch))
        if sum_.skipped:
            progress(len(sum_.skipped))
        if parts:
            pooled, spatial = (np.concatenate(column) for column in zip(*parts, strict=True))
            sum_.pooled.add(pooled)
            sum_.spatial.add(spatial)
            chosen = kid_positions(len(self))
            chosen = chosen[(chosen >= start) & (chosen < start + len(pooled))]
            sum_.kid.append(pooled[chosen - start])
        sum_.digests.append(tally.sha256)
        return sum_


def kid_positions(n: int) -> np.ndarray:
    """Which of n images' features are kept: min(n, 5000) of a fixed permutation, ascending."""
    return np.sort(np.random.default_rng(KID_SEED).permutation(n)[:KID_IMAGES])


def images_sha256(digests: list[str]) -> str:
    """One hash of all pixels: sha256 of the chunks' digests (hex, in order)."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()
