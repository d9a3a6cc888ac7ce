"""Do the scores behave? Real test images against the training set, and degraded ever more; prints a Markdown table.

    python scripts/check_scores.py --data data --images 2000
    python scripts/check_scores.py --dataset fashion_mnist --data /usr/share/datasets/fashion-mnist
    python scripts/check_scores.py --floors        # what real images score: an entry of iec/metrics/references/floors.yaml

Every score must get worse with every level of every degradation; exits with 1 otherwise. Not so the inception score of
Fashion-MNIST: ImageNet's classes are of photographs.
"""

import argparse
import io
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter

from iec.io.datasets import load_cifar10, load_fashion_mnist_32
from iec.io.markdown import markdown_table
from iec.io.paths import user_path
from iec.io.progress import reported, stage
from iec.io.runtime import entry_point, keep_freed_memory, resolve_device
from iec.metrics.evaluation import Evaluation
from iec.metrics.extractors.features import Features, extract_each
from iec.metrics.frechet import FewSamplesWarning
from iec.metrics.metric import FEATURES
from iec.metrics.protocol import PROTOCOLS, protocol
from iec.metrics.references import catalog
from iec.metrics.references.reference import load_reference, reference_path
from iec.metrics.scores import Score, available

TESTS: dict[str, Callable[[Path], np.ndarray]] = {
    "cifar10": lambda root: load_cifar10(root, train=False),
    "fashion_mnist": lambda root: load_fashion_mnist_32(root, train=False),
}
"""Folder -> the test images; the reference is the training set, NAME_train."""

SIZES, SETS = (*(2**k for k in range(6, 14)), 10000), 8
"""Numbers of images of the floors, and how many disjoint sets of them are scored at most."""
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


def row(label: str, scores: dict[str, Score]) -> list[str]:
    return [label, *(f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in scores.values())]


def evaluation(dataset: str, name: str, device: torch.device) -> Evaluation:
    """Of a protocol against the training set."""
    rules = protocol(name)
    extractor = rules.extractor(device)
    reference = load_reference(reference_path(f"{dataset}_train", extractor), extractor, resolution=32)
    return Evaluation(rules, extractor, reference, available(rules.default, reference))


def scored(images: np.ndarray, evaluations: Sequence[Evaluation]) -> dict[str, Score]:
    """By label."""
    features = extract_each(images, [each.extractor for each in evaluations])
    pairs = zip(evaluations, features, strict=True)
    return {score.label: score for each, own in pairs for score in each.scores(own, bootstrap=200)[0].values()}


def worsens(before: dict[str, Score], after: dict[str, Score]) -> list[str]:
    """Names of the scores that did not get worse."""
    sign = {name: -1 if score.higher_is_better else 1 for name, score in before.items()}
    return [name for name in before if sign[name] * (after[name].value - before[name].value) <= 0]


def floors(dataset: str, images: np.ndarray, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Mean Frechet distances of N images to the training set, over disjoint sets: protocol -> score -> N -> value."""
    order = np.random.default_rng(0).permutation(len(images))
    extractors = [each.extractor for each in evaluations]
    with reported("features") as report:
        done = itertools.count(1)
        features = extract_each(images[order], extractors, lambda batch: report(next(done) * batch, len(images)))
    table: dict[str, Any] = {"images": catalog.dataset(f"{dataset}_train").title.replace("train", "test")}
    for each, own in zip(evaluations, features, strict=True):
        scores = [score for score in ("fid", "sfid") if score in each.names]
        entry = table[each.protocol.name] = {score: {} for score in scores}
        for n in (n for n in SIZES if n <= len(images)):
            sets = [slice(k * n, (k + 1) * n) for k in range(min(SETS, len(images) // n))]
            values = [each.protocol.score(part(own, chosen), each.reference, scores, bootstrap=0) for chosen in sets]
            for score in scores:
                entry[score][n] = float(f"{np.mean([value[score].value for value in values]):.4g}")
    return table


def part(features: Features, chosen: slice) -> Features:
    """Features of some of the images."""
    return replace(features, **{kind: getattr(features, kind)[chosen] for kind in FEATURES})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=TESTS, default="cifar10", help="default: %(default)s")
    parser.add_argument("--data", type=user_path, default=Path("data"), help="its folder (iec/io/datasets.py)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="efficientnet_lite0", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2000, help="test images, from the first")
    parser.add_argument("--floors", action="store_true", help="of the protocol and those beside it, from all test images")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    rules = protocol(args.protocol)
    evaluations = [evaluation(args.dataset, name, resolve_device(args.device)) for name in (rules.name, *rules.beside)]
    if args.floors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewSamplesWarning)  # it is what is measured
            table = floors(args.dataset, TESTS[args.dataset](args.data), evaluations)
        print(yaml.safe_dump({f"{args.dataset}_train": table}, sort_keys=False, default_flow_style=None, width=130))
        return
    images = TESTS[args.dataset](args.data)[: args.images]
    sets = {f"{kind} {level:g}": degrade(images, level) for kind, (degrade, levels) in LEVELS.items() for level in levels}
    results = {}
    with stage("scores", 1 + len(sets)) as advance:
        for label, changed in {"real test images": images, **sets}.items():
            results[label] = scored(changed, evaluations)
            advance()
    body = [row(label, scores) for label, scores in results.items()]
    print(f"N = {len(images)}\n\n{markdown_table(['', *results['real test images']], body)}")
    failures = []
    for kind, (_, levels) in LEVELS.items():
        chain = ["real test images", *(f"{kind} {level:g}" for level in levels)]
        for before, after in itertools.pairwise(chain):
            failures += [
                f"{name}: {after} is not worse than {before}"
                for name in worsens(results[before], results[after])
                if results[after][name].name not in NOT_JUDGED.get(args.dataset, ())
            ]
    print("\n" + ("\n".join(failures) or "Every score that is judged gets worse with every level."))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    with entry_point():
        main()
