"""Statistics that other tools have computed, as references: npz files with means and covariances.

| origin        | keys                                   | made with                                                        |
|---------------|----------------------------------------|------------------------------------------------------------------|
| `adm`         | mu, sigma, mu_s, sigma_s, often arr_0  | guided-diffusion, evaluations/evaluator.py; ``VIRTUAL_*.npz``    |
| `edm`         | mu, sigma                              | NVlabs/edm, fid.py                                               |
| `pytorch_fid` | mu, sigma                              | mseitzer/pytorch-fid, ``--save-stats``                           |

mu [2048], sigma [2048, 2048]: of pool_3. mu_s [2023], sigma_s: of the spatial features in H, W, C order. arr_0: uint8 images, whose
features are what KID, precision and recall compare with. The files do not say which network, resize or layer they come from:
that they fit an extractor is the word of whoever names the origin, and only their widths can be checked.
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from iec.errors import ArtifactError, MetricError
from iec.io.files import sha256
from iec.metrics.extractors.features import Extractor, extract
from iec.metrics.images.npz import ImageArray
from iec.metrics.images.sources import BLOCK
from iec.metrics.references.catalog import ORIGINS
from iec.metrics.references.reference import Reference, assemble

KEYS = {"pooled_mean": "mu", "pooled_cov": "sigma", "spatial_mean": "mu_s", "spatial_cov": "sigma_s"}
NAMES = {"adm": "guided-diffusion evaluator", "edm": "EDM fid.py", "pytorch_fid": "pytorch-fid"}


def npz_keys(path: Path) -> frozenset[str]:
    """Names of the arrays in an npz file. Raises `ArtifactError` if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is missing, truncated or no npz file ({error}). Fetch it again.") from error


def import_statistics(
    path: Path,
    extractor: Extractor,
    origin: str | None = None,
    resolution: int | None = None,
    dataset: str | None = None,
    n: int | None = None,
    images: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """The reference that an npz file of statistics is, for ``extractor``; it computes the features of arr_0, if that is
    there and ``images`` is true.

    origin: whose conventions, a key of `ORIGINS`; a file with mu_s is `adm`'s if nothing else is said. resolution: of the images
    that will be compared; arr_0 says it by itself. n: images behind the statistics, where known.
    Raises `ArtifactError` for missing keys, an origin that is not said or does not fit the extractor, NaN, another width than the
    extractor's, or a covariance that is not symmetric.
    """
    keys = npz_keys(path)
    origin = _origin(path, keys, origin, extractor)
    array = ImageArray.open(path) if "arr_0" in keys else None
    if array is None and resolution is None:
        raise ArtifactError(f"{path} does not say how large its images are. Pass --resolution R.")
    if array is not None and resolution not in (None, array.shape[1]):
        raise ArtifactError(
            f"{path} is of {array.shape[1]} x {array.shape[1]} images, not {resolution} x {resolution}. Use another file."
        )
    tensors = _read(path, keys)
    side = int(array.shape[1] if array is not None else resolution or 0)
    _check_widths(path, tensors, extractor, side)
    provenance: dict[str, Any] = {
        "dataset": dataset or path.stem,
        "n": n,
        "resolution": side,
        "preprocess": "not stated by the file",
        "extractor": extractor.identity,
        "extractor_hash": extractor.hash,
        "imported": {"file": path.name, "sha256": sha256(path), "origin": NAMES[origin], "keys": sorted(keys)},
    }
    if array is not None and images:
        blocks = array.blocks(0, array.shape[0], BLOCK)
        tensors["kid"] = extract(blocks, extractor, progress).pooled
        provenance["kid_images"] = f"the {array.shape[0]} of arr_0"
    try:
        return assemble(tensors, provenance)
    except MetricError as error:
        raise ArtifactError(f"{path} holds no statistics of images: {error}") from error


def _origin(path: Path, keys: frozenset[str], origin: str | None, extractor: Extractor) -> str:
    if not {"mu", "sigma"} <= keys:
        raise ArtifactError(
            f"{path} lacks mu or sigma; it holds {', '.join(sorted(keys))}. Statistics have both. A reference of an "
            "npz's images (arr_0) is made by  python -m iec.metrics.references --npz FILE --output FILE.safetensors."
        )
    if ("mu_s" in keys) != ("sigma_s" in keys):
        raise ArtifactError(f"{path} has only one of mu_s and sigma_s. Fetch it again.")
    if origin is None and "mu_s" in keys:
        origin = "adm"
    if origin is None:
        raise ArtifactError(
            f"{path} holds mu and sigma alone, which pytorch-fid and EDM write alike, from differently resized images. Say which:  "
            "--origin pytorch_fid  or  --origin edm."
        )
    if origin not in ORIGINS:
        raise ArtifactError(f"Unknown origin {origin!r}; choose one of {', '.join(ORIGINS)}.")
    if ORIGINS[origin] != extractor.name:
        raise ArtifactError(
            f"{path} was made by {NAMES[origin]}, whose images go through the extractor {ORIGINS[origin]!r}, not "
            f"{extractor.name!r}. Choose a protocol with that extractor (python -m iec.metrics protocols)."
        )
    return origin


def _read(path: Path, keys: frozenset[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {ours: np.asarray(file[theirs], np.float64) for ours, theirs in KEYS.items() if theirs in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Fetch it again.") from error


def _check_widths(path: Path, tensors: dict[str, np.ndarray], extractor: Extractor, side: int) -> None:
    pooled, spatial, _ = extractor(np.zeros((1, side, side, 3), np.uint8))
    for name, width in (("pooled_mean", pooled.shape[1]), ("spatial_mean", spatial.shape[1])):
        if name in tensors and tensors[name].shape != (width,):
            raise ArtifactError(
                f"{path}: {KEYS[name]} is {list(tensors[name].shape)}, {extractor.label} gives {width} features. It comes from "
                "another network or layer; use a file made with this one."
            )
