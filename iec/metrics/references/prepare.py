"""From real images to a reference file."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iec.errors import ArtifactError, DatasetError, MetricError
from iec.io.captions import load_coco_captions
from iec.io.datasets import Lmdb, load_cifar10, load_fashion_mnist_32
from iec.metrics.extractors.features import Extractor
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.images.decode import Preprocess
from iec.metrics.images.encoded import Files, open_encoded, open_folder
from iec.metrics.images.sources import ArraySource, Source
from iec.metrics.protocol import protocol
from iec.metrics.record import installed_versions
from iec.metrics.references.catalog import dataset
from iec.metrics.references.chunks import CHUNK, KID_IMAGES, KID_SEED, Job, Sum, images_sha256
from iec.metrics.references.gather import gather
from iec.metrics.references.reference import Reference, load_reference

log = logging.getLogger(__name__)
ARRAYS: dict[str, Callable[[Path], np.ndarray]] = {
    "cifar10_train": load_cifar10,
    "fashion_mnist_train": load_fashion_mnist_32,
    "fashion_mnist_test": lambda root: load_fashion_mnist_32(root, train=False),
}
"""Data sets that are read whole, as they are: folder -> uint8 [N, H, W, C]."""


def open_dataset(name: str, root: Path, preprocess: Preprocess | None = None, skip_damaged: bool = False) -> Source:
    """A data set of `iec.metrics.references.catalog` below ``root``, preprocessed as it says there, or as ``preprocess`` says.

    Raises `ConfigError` for an unknown name, `DatasetError` when it is not there.
    """
    entry = dataset(name)
    preprocess = preprocess or Preprocess(entry.resolution, **entry.preprocess)
    if name in ARRAYS:
        return ArraySource(ARRAYS[name](root), entry.title)
    if name.startswith("lsun"):
        folder = Lmdb(root / entry.folder)
        return open_encoded(folder, folder.names(), entry.title, preprocess, skip_damaged)
    if name == "coco_val2014_5k":
        names = sorted(file for file, _ in load_coco_captions(root / "annotations/captions_val2014.json", entry.images or 0))
        return open_encoded(Files(root / "val2014"), names, entry.title, preprocess, skip_damaged)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder. It should hold {entry.folder}; get the images from {entry.get}")
    return open_folder(root, recursive=True, preprocess=preprocess, skip_damaged=skip_damaged, label=entry.title)


def open_extractor(name: str, device: torch.device) -> Extractor:
    """Of a protocol."""
    return protocol(name).extractor(device)


def make_reference(
    source: Source,
    open_: Callable[[torch.device], Extractor],
    output: Path,
    command: str,
    device: torch.device,
    workers: int = 1,
    limit: int | None = None,
    skip_damaged: bool = False,
    compact: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Reference:
    """Statistics of all images of ``source``, written to ``output``; see `iec.metrics.references.gather`. Run again
    after a kill, it goes on.

    compact: see `Reference.compact`. command: for the record; if it is the one that wrote ``output`` before, that is returned and
    nothing is computed. The bytes of the file depend on the images, the extractor, the device's type, the versions and
    ``command``, but not on the number of workers, on kills, or on the day. Raises `ArtifactError` if ``output`` holds something
    else.
    """
    extractor = open_(torch.device("cpu"))
    if output.exists():
        existing = load_reference(output, extractor, source.resolution)
        if existing.provenance.get("command") != command:
            raise ArtifactError(f"{output} exists and was made by another command. Delete it, or choose another --output.")
        log.info("%s was made by this command before; delete it to make it again.", output)
        return existing
    job = Job(source, open_, extractor.hash, limit, skip_damaged)
    rest = output.with_name(output.name + ".partial")
    total = gather(job, rest, device, workers, report)
    reference = Reference(
        *_statistics(total, source.label), total.kid_features, _provenance(job, extractor, total, command, device)
    )
    reference = reference.compact() if compact else reference
    reference.save(output)
    rest.unlink(missing_ok=True)
    return reference


def _statistics(total: Sum, label: str) -> tuple[GaussianStatistics, GaussianStatistics | None]:
    """Of pooled features, and of spatial ones where the extractor has any."""
    if total.pooled.n < 2:
        raise MetricError(f"{label}: {total.pooled.n} images can be read; statistics need at least 2.")
    pooled, spatial = total.pooled.statistics(), total.spatial.statistics()
    if not pooled.cov.any():
        raise MetricError(f"{label}: all {pooled.n} images have the same features; look at them.")
    return pooled, spatial if len(spatial.mean) else None


def _provenance(job: Job, extractor: Extractor, total: Sum, command: str, device: torch.device) -> dict[str, Any]:
    return {
        "dataset": job.source.label,
        "n": total.pooled.n,
        "limit": job.limit,
        "resolution": job.source.resolution,
        "preprocess": job.source.preprocess.describe(job.source.channels),
        "resize": extractor.identity["resize"],
        "extractor": extractor.identity,
        "extractor_hash": extractor.hash,
        "images_sha256": images_sha256(total.digests),
        "images_sha256_of": f"the hex sha256 of each {CHUNK} images' pixels, joined",
        "skipped": total.skipped,
        "kid_images": f"{KID_IMAGES} of default_rng({KID_SEED}).permutation(n), in file order",
        "device": device.type,
        "versions": installed_versions(),
        "command": command,
    }


def opener(name: str) -> Callable[[torch.device], Extractor]:
    """`open_extractor` of that protocol, as other processes can be sent it."""
    return partial(open_extractor, name)
