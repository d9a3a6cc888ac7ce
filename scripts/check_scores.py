"""Do the scores behave? Real test images against the training set, and degraded ever more; prints a Markdown table.

    python scripts/check_scores.py --data data --images 2000
    python scripts/check_scores.py --dataset fashion_mnist --data /usr/share/datasets/fashion-mnist
    python scripts/check_scores.py --protocol efficientnet_lite0_deep

Every score must get worse with every level of every degradation; exits with 1 otherwise. Not so the inception score of
Fashion-MNIST: ImageNet's classes are of photographs.
"""

import argparse
import io
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from iec.io.datasets import load_cifar10, load_fashion_mnist, pad_to_32
from iec.io.paths import user_path
from iec.io.progress import stage
from iec.io.runtime import entry_point, keep_freed_memory, resolve_device
from iec.metrics.extractors.features import extract
from iec.metrics.protocol import PROTOCOLS, protocol
from iec.metrics.references.reference import load_reference, reference_path
from iec.metrics.scores import Score

TESTS: dict[str, Callable[[Path], np.ndarray]] = {
    "cifar10": lambda root: load_cifar10(root, train=False),
    "fashion_mnist": lambda root: pad_to_32(load_fashion_mnist(root, train=False)),
}
"""Folder -> the test images; the reference is the training set, NAME_train."""

NOT_JUDGED = {"fashion_mnist": ("is",)}


def to_bytes(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def noise(images: np.ndarray, deviation: float) -> np.ndarray:
    return to_bytes(images + np.random.default_rng(0).normal(0, deviation, images.shape))


def blur(images: np.ndarray, deviation: float) -> np.ndarray:
    return to_bytes(gaussian_filter(images.astype(np.float32), (0, deviation, deviation, 0)))


def jpeg(images: np.ndarray, quality: float) -> np.ndarray:
    decoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, format="JPEG", quality=int(quality))
        decoded.append(np.atleast_3d(np.asarray(Image.open(file))))
    return np.stack(decoded)


LEVELS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = {
    "noise, deviation": (noise, (2, 5, 12, 30)),
    "blur, deviation": (blur, (0.5, 0.75, 1.0, 1.5)),
    "JPEG, quality": (jpeg, (90, 70, 40, 15)),
}


def row(label: str, scores: dict[str, Score]) -> str:
    return f"| {label} | " + " | ".join(f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in scores.values()) + " |"


def worsens(before: dict[str, Score], after: dict[str, Score]) -> list[str]:
    """Names of the scores that did not get worse."""
    sign = {name: -1 if score.higher_is_better else 1 for name, score in before.items()}
    return [name for name in before if sign[name] * (after[name].value - before[name].value) <= 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=TESTS, default="cifar10", help="default: %(default)s")
    parser.add_argument("--data", type=user_path, default=Path("data"), help="its folder (iec/io/datasets.py)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="efficientnet_lite0", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2000, help="test images, from the first")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    rules = protocol(args.protocol)
    extractor = rules.extractor(resolve_device(args.device))
    reference = load_reference(reference_path(f"{args.dataset}_train", extractor), extractor, resolution=32)
    images = TESTS[args.dataset](args.data)[: args.images]
    sets = {f"{kind} {level:g}": degrade(images, level) for kind, (degrade, levels) in LEVELS.items() for level in levels}
    results = {}
    with stage("scores", 1 + len(sets)) as advance:
        for label, changed in {"real test images": images, **sets}.items():
            results[label] = rules.score(extract(changed, extractor), reference)
            advance()
    labels = [score.label for score in results["real test images"].values()]
    print(f"N = {len(images)}\n\n| | {' | '.join(labels)} |\n|---|{'---|' * len(labels)}")
    failures = []
    for label, scores in results.items():
        print(row(label, scores))
    for kind, (_, levels) in LEVELS.items():
        chain = ["real test images", *(f"{kind} {level:g}" for level in levels)]
        for before, after in itertools.pairwise(chain):
            failures += [
                f"{name}: {after} is not worse than {before}"
                for name in worsens(results[before], results[after])
                if name not in NOT_JUDGED.get(args.dataset, ())
            ]
    print("\n" + ("\n".join(failures) or "Every score that is judged gets worse with every level."))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    with entry_point():
        main()
