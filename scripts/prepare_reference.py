"""Reference statistics of all CIFAR-10 training images, for the scores of generated ones.

    python scripts/prepare_reference.py --data data

Writes iec/metrics/references/cifar10_train.efflite0.safetensors, whole or not at all; takes some minutes on a CPU.
"""

import argparse
import hashlib
import logging
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from iec.datasets import load_cifar10
from iec.errors import IECError
from iec.metrics.extractor import EffNetLite0
from iec.metrics.features import extract
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.record import installed_versions
from iec.metrics.reference import Reference, reference_path
from iec.progress import stage
from iec.runtime import keep_freed_memory, resolve_device

KID_IMAGES, KID_SEED = 5000, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR-10 (see iec/datasets.py)")
    parser.add_argument("--output", type=Path, help="default: where the package looks for it")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    extractor = EffNetLite0(resolve_device(args.device))
    images = load_cifar10(args.data)
    with stage("features", -(-len(images) // extractor.batch)) as advance:
        features = extract(images, extractor, lambda _: advance())
    chosen = np.sort(np.random.default_rng(KID_SEED).permutation(len(images))[:KID_IMAGES])
    provenance = {
        "dataset": "CIFAR-10 train",
        "n": len(features),
        "resolution": features.resolution,
        "resize": extractor.identity["resize"],
        "extractor": extractor.identity,
        "extractor_hash": extractor.hash,
        "images_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        "kid_images": f"{KID_IMAGES} of default_rng({KID_SEED}).permutation(n), in file order",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": installed_versions(),
        "command": shlex.join(["python", "scripts/prepare_reference.py", *sys.argv[1:]]),
    }
    pooled, spatial = GaussianStatistics.of(features.pooled), GaussianStatistics.of(features.spatial)
    reference = Reference(pooled, spatial, features.pooled[chosen], provenance)
    path = args.output or reference_path("cifar10_train", extractor)
    reference.save(path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, hash {reference.hash[:12]}")


if __name__ == "__main__":
    try:
        main()
    except IECError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped; nothing was written. Run the same command again.")
