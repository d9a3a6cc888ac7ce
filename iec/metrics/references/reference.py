"""Statistics of the real images that scores compare with: one safetensors file, tied to its extractor and to its own content.

Tensors: pooled_mean, pooled_cov, spatial_mean, spatial_cov (float64, all images), kid (float32, pooled features of a fixed random
subset); those of a part that is not there are left out. A compact reference (`Reference.compact`) has pooled_cov as
its upper triangle, row by row, in float32. Metadata: JSON provenance, and a sha256 over provenance and tensors,
which is also the reference's hash in records.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iec.errors import ArtifactError, MetricError
from iec.io.files import write_atomic
from iec.metrics.extractors.features import Extractor
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.references.catalog import find_reference

TENSORS = ("pooled_mean", "pooled_cov", "spatial_mean", "spatial_cov", "kid")
REQUIRED = ("n", "resolution", "extractor", "extractor_hash")
"""Of the provenance, that have to be there."""
COMPACT = "pooled statistics alone, the covariance in float32"
UNKNOWN_N = sys.maxsize
"""Stands for n where the provenance has null: many images, so that a distance to them is not taken for one of a few."""


@dataclass(frozen=True)
class Reference:
    """Real images as seen by one extractor; a part is None where imported statistics do not hold it.

    pooled: of pooled features, for FID. spatial: for sFID. kid: float32 [M, d], pooled features of a random subset, for KID,
    precision and recall. provenance: dataset, n, resolution, preprocess, extractor, extractor_hash, images_sha256, kid_images,
    versions, command; imported ones: file, sha256, origin.
    """

    pooled: GaussianStatistics | None
    spatial: GaussianStatistics | None
    kid: np.ndarray | None
    provenance: dict[str, Any]

    @property
    def resolution(self) -> int:
        return int(self.provenance["resolution"])

    @property
    def extractor_hash(self) -> str:
        return str(self.provenance["extractor_hash"])

    @cached_property
    def hash(self) -> str:
        """sha256 of provenance and tensors."""
        return _content_hash(self._tensors(), self.provenance)

    def compact(self) -> "Reference":
        """With pooled statistics alone and their covariance rounded to float32, which is stored as a triangle: for d = 1280 3 MB
        instead of 39. Raises `MetricError` without pooled statistics."""
        if self.pooled is None:
            raise MetricError("A compact reference is of pooled statistics, which are not there.")
        pooled = replace(self.pooled, cov=self.pooled.cov.astype(np.float32).astype(np.float64))
        return Reference(pooled, None, None, self.provenance | {"compact": COMPACT})

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        metadata = {"provenance": json.dumps(self.provenance, sort_keys=True), "sha256": self.hash}
        data = _ordered(save(self._tensors(), metadata=metadata))
        write_atomic(path, lambda file: file.write(data))

    def _tensors(self) -> dict[str, np.ndarray]:
        values = {"kid": self.kid}
        for part in ("pooled", "spatial"):
            statistics = getattr(self, part)
            if statistics is not None:
                values |= {f"{part}_mean": statistics.mean, f"{part}_cov": statistics.cov}
        if "compact" in self.provenance and (cov := values.get("pooled_cov")) is not None:
            values["pooled_cov"] = cov[np.triu_indices(len(cov))].astype(np.float32)
        return {name: np.ascontiguousarray(values[name]) for name in TENSORS if values.get(name) is not None}


def reference_path(dataset: str, extractor: Extractor | str) -> Path:
    """Where the reference of a data set is: in the package, e.g. ``iec/metrics/references/cifar10_train.efflite0.safetensors``,
    else in the user's folder. Raises `ArtifactError` with the command that makes it, `ConfigError` for an unknown data set."""
    return find_reference(dataset, extractor if isinstance(extractor, str) else extractor.name)


def load_reference(path: Path | str, extractor: Extractor, resolution: int | None = None) -> Reference:
    """Read and check a reference.

    Raises `ArtifactError` if it is missing, truncated or damaged, holds what cannot be statistics, was made with another
    extractor (its weights, layer, input size or normalisation), or of images of another resolution than ``resolution``.
    """
    path = Path(path)
    again = "Make it again:  python -m iec.metrics.references (see --help)"
    if not path.is_file():
        raise ArtifactError(
            f"The reference statistics {path} do not exist. Make them:  python -m iec.metrics.references (see --help)"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in TENSORS if name in file.keys()}  # noqa: SIM118  # no mapping
        provenance = json.loads(metadata["provenance"])
        stored = metadata["sha256"]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is truncated or not a reference file ({error}). {again}") from error
    if _content_hash(tensors, provenance) != stored:
        raise ArtifactError(f"{path} is damaged: its content does not have the hash it carries. {again}")
    missing = [name for name in REQUIRED if name not in provenance]
    if missing:
        raise ArtifactError(f"{path} does not say its {', '.join(missing)}. {again}")
    if provenance["extractor_hash"] != extractor.hash:
        difference = _differences(provenance["extractor"], extractor.identity)
        raise ArtifactError(f"{path} was made with another extractor: {difference}. {again}")
    if resolution is not None and provenance["resolution"] != resolution:
        raise ArtifactError(
            f"{path} is of {provenance['resolution']} x {provenance['resolution']} images, not {resolution} x {resolution}. "
            "Use the reference of this data set and resolution."
        )
    try:
        return assemble(tensors, provenance)
    except MetricError as error:
        raise ArtifactError(f"{path} holds no statistics of images: {error}") from error


def assemble(tensors: dict[str, np.ndarray], provenance: dict[str, Any]) -> Reference:
    """A reference of the tensors that are there. Raises `MetricError` for half a part, a width that differs between mean,
    covariance and KID features, NaN, or a covariance that is not symmetric."""
    n = UNKNOWN_N if provenance["n"] is None else int(provenance["n"])
    parts: dict[str, GaussianStatistics | None] = {}
    if "compact" in provenance and {"pooled_mean", "pooled_cov"} <= tensors.keys():
        tensors = tensors | {"pooled_cov": _square(tensors["pooled_cov"], len(tensors["pooled_mean"]))}
    for part in ("pooled", "spatial"):
        mean, cov = tensors.get(f"{part}_mean"), tensors.get(f"{part}_cov")
        if (mean is None) != (cov is None):
            raise MetricError(f"{part}_mean or {part}_cov is missing; both are needed.")
        parts[part] = None if mean is None or cov is None else GaussianStatistics(n, mean, cov)
    kid, pooled = tensors.get("kid"), parts["pooled"]
    if kid is not None and (kid.ndim != 2 or (pooled is not None and kid.shape[1] != len(pooled.mean))):
        raise MetricError(f"The features for KID are {list(kid.shape)}, of another width than the statistics.")
    if kid is not None and not np.isfinite(kid).all():
        raise MetricError("The features for KID hold NaN or infinity.")
    if kid is None and not any(parts.values()):
        raise MetricError(f"None of {', '.join(TENSORS)} is there.")
    return Reference(parts["pooled"], parts["spatial"], kid, provenance)


def _square(triangle: np.ndarray, d: int) -> np.ndarray:
    """float64 [d, d], symmetric, of its upper triangle."""
    if triangle.shape != (d * (d + 1) // 2,):
        raise MetricError(f"pooled_cov {list(triangle.shape)} is no triangle of {d} features.")
    square = np.zeros((d, d))
    square[np.triu_indices(d)] = triangle
    return np.triu(square) + np.triu(square, 1).T


def _content_hash(tensors: dict[str, np.ndarray], provenance: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode())
    for name in TENSORS:
        if name in tensors:
            value = tensors[name]
            digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _ordered(data: bytes) -> bytes:
    """The safetensors file with its header's keys sorted; the library writes metadata in a random order."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _differences(stored: dict[str, Any], expected: dict[str, Any]) -> str:
    keys = [key for key in {**stored, **expected} if stored.get(key) != expected.get(key)]
    return "; ".join(f"{key}: {stored.get(key)!r}, now {expected.get(key)!r}" for key in keys) or "same settings, other hash"
