"""Statistics of the real images that scores compare with: one safetensors file, tied to its extractor and to its own content.

Tensors: pooled_mean, pooled_cov, spatial_mean, spatial_cov (float64, all images), kid (float32, pooled features of a fixed random
subset). Metadata: JSON provenance, and a sha256 over provenance and tensors, which is also the reference's hash in records.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iec.errors import ArtifactError
from iec.files import write_atomic
from iec.metrics.features import Extractor
from iec.metrics.frechet import GaussianStatistics

FOLDER = Path(__file__).parent / "references"
TENSORS = ("pooled_mean", "pooled_cov", "spatial_mean", "spatial_cov", "kid")


@dataclass(frozen=True)
class Reference:
    """Real images as seen by one extractor.

    kid: float32 [M, d]. provenance: dataset, n, resolution, resize, extractor, extractor_hash, images_sha256, kid_images, date,
    versions, command.
    """

    pooled: GaussianStatistics
    spatial: GaussianStatistics
    kid: np.ndarray
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

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = self._tensors()
        data = save(tensors, metadata={"provenance": json.dumps(self.provenance, sort_keys=True), "sha256": self.hash})
        write_atomic(path, lambda file: file.write(data))

    def _tensors(self) -> dict[str, np.ndarray]:
        values = (self.pooled.mean, self.pooled.cov, self.spatial.mean, self.spatial.cov, self.kid)
        return {name: np.ascontiguousarray(value) for name, value in zip(TENSORS, values, strict=True)}


def reference_path(dataset: str, extractor: Extractor | str) -> Path:
    """Where the package keeps it, e.g. ``iec/metrics/references/cifar10_train.efflite0.safetensors``."""
    name = extractor if isinstance(extractor, str) else extractor.name
    return FOLDER / f"{dataset}.{name}.safetensors"


def load_reference(path: Path | str, extractor: Extractor, resolution: int | None = None) -> Reference:
    """Read and check a reference.

    Raises `ArtifactError` if it is missing, truncated or damaged, made with another extractor (its weights, layer, input size or
    normalisation), or of images of another resolution than ``resolution``; the message has the command that makes it.
    """
    path = Path(path)
    command = f"Make it again:  python scripts/prepare_reference.py --data data --output {path}"
    if not path.is_file():
        raise ArtifactError(f"The reference statistics {path} do not exist. {command}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        provenance = json.loads(metadata["provenance"])
        stored = metadata["sha256"]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is truncated or not a reference file ({error}). {command}") from error
    if _content_hash(tensors, provenance) != stored:
        raise ArtifactError(f"{path} is damaged: its content does not have the hash it carries. {command}")
    if provenance["extractor_hash"] != extractor.hash:
        raise ArtifactError(
            f"{path} was made with another extractor: {_differences(provenance['extractor'], extractor.identity)}. {command}"
        )
    if resolution is not None and provenance["resolution"] != resolution:
        raise ArtifactError(
            f"{path} is of {provenance['resolution']} x {provenance['resolution']} images, not {resolution} x {resolution}. "
            "Use the reference of this data set and resolution."
        )
    n = int(provenance["n"])
    pooled = GaussianStatistics(n, tensors["pooled_mean"], tensors["pooled_cov"])
    spatial = GaussianStatistics(n, tensors["spatial_mean"], tensors["spatial_cov"])
    return Reference(pooled, spatial, tensors["kid"], provenance)


def _content_hash(tensors: dict[str, np.ndarray], provenance: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode())
    for name in TENSORS:
        value = tensors[name]
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    return "; ".join(f"{key}: {stored.get(key)!r}, now {wanted.get(key)!r}" for key in keys) or "same settings, other hash"
