"""Do the protocols give the numbers of the evaluators they are named after? Prints a Markdown table; nothing is downloaded.

    python -m scripts.check_metrics > experiments/results/metrics_parity.md

Once end to end, from bytes: each package's own network (one set of random weights for all), its own resize and its own formulas.
Once from random features, with enough of them for all that N decides: chunks of the inception score, KID's subsets. Exits with 1 if
a score is further from the other's than `ALLOWED`.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from scipy.linalg import LinAlgWarning
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from iec.io.markdown import markdown_table
from iec.metrics.extractors.features import Features, extract
from iec.metrics.extractors.inception import PYTORCH_FID, TENSORFLOW, Inception
from iec.metrics.frechet import FewSamplesWarning, GaussianStatistics
from iec.metrics.kid import kid_of_subsets
from iec.metrics.protocol import protocol
from iec.metrics.references.reference import Reference
from tests.metrics import adm
from tests.metrics.inception_networks import pytorch_fid_network, random_weights, torch_fidelity_network

ALLOWED = 1e-4
"""Relative difference: of float32 networks, and of square roots of matrices without full rank."""
ADM = ("fid", "sfid", "is", "precision", "recall")
FIDELITY = ("fid", "is", "precision", "recall")
PARTS = {"fid": "pooled", "sfid": "spatial"}


HEAD = """**Do the protocols give the numbers of the evaluators they are named after?**

    python -m scripts.check_metrics        # 2026-11-23

torch-fidelity 0.4 and pytorch-fid 0.3 run as they are. "ADM's formulas" are those of guided-diffusion's evaluator, transcribed in
float64 (`tests/metrics/adm.py`), on the features of torch-fidelity's network: its TensorFlow graph is not run. FID and sFID from
bytes have 50 images for 2048 and 2023 features, so the differences there are those of square roots of singular matrices; the
packages themselves take means and kernels in float32. Random weights give an inception score near 1. Not shown by this: that the
published weights are what they should be (their SHA-256 is checked when they are loaded), and ADM's float16 distances.
"""


class Row(NamedTuple):
    """One score by us and by another."""

    score: str
    other: str
    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        return abs(self.ours - self.theirs) / max(abs(self.theirs), 1e-12)


def random_images(n: int, seed: int, blur: float) -> np.ndarray:
    """Blurred noise, uint8 [n, 32, 32, 3]."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(n, 32, 32, 3)), (0, blur, blur, 0))
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


def of_network(network: nn.Module, images: np.ndarray, batch: int = 25) -> Features:
    """What torch-fidelity's network says, with its own forward; spatial as guided-diffusion takes it, in H, W, C order."""
    seen: list[Tensor] = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *values: seen.append(values[-1]))  # type: ignore[union-attr]
    with torch.inference_mode():
        parts = [network(x) for x in torch.from_numpy(images).permute(0, 3, 1, 2).split(batch)]
    hook.remove()
    pooled, logits = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Features(pooled, torch.cat(seen)[:, :7].permute(0, 2, 3, 1).flatten(1).numpy(), logits, 32, "theirs")


def reference_of(real: Features) -> Reference:
    statistics = GaussianStatistics.of(real.pooled), GaussianStatistics.of(real.spatial)
    return Reference(*statistics, real.pooled, {"n": len(real), "resolution": 32, "extractor_hash": real.extractor})


def values(name: str, scores: tuple[str, ...], ours: tuple[Features, Features]) -> dict[str, float]:
    """By one of our protocols; features of generated and of real images."""
    return {key: s.value for key, s in protocol(name).score(ours[0], reference_of(ours[1]), scores, bootstrap=0).items()}


def fidelity(generated: Features, real: Features) -> dict[str, float]:
    """By torch-fidelity's functions."""
    a, b = torch.from_numpy(generated.pooled), torch.from_numpy(real.pooled)
    distance = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), verbose=False)
    score = isc_features_to_metric(torch.from_numpy(generated.logits))
    inside = prc_features_to_metric(a, b, verbose=False)
    return {"fid": distance["frechet_inception_distance"], "is": score["inception_score_mean"], **inside}


def adm_values(generated: Features, real: Features) -> dict[str, float]:
    """By the transcription of guided-diffusion's formulas."""
    precision, recall = adm.precision_recall(real.pooled, generated.pooled)
    distances = {"fid": adm.frechet(generated.pooled, real.pooled), "sfid": adm.frechet(generated.spatial, real.spatial)}
    return {**distances, "is": adm.inception_score(generated.logits), "precision": precision, "recall": recall}


def pytorch_fid(a: np.ndarray, b: np.ndarray) -> float:
    return float(calculate_frechet_distance(*adm.statistics(a), *adm.statistics(b)))


def compared(other: str, scores: tuple[str, ...], ours: dict[str, float], theirs: dict[str, float]) -> list[Row]:
    return [Row(score, other, ours[score], theirs[score]) for score in scores]


def kid_row(ours: tuple[Features, Features], theirs: tuple[Features, Features], subsets: int, size: int) -> Row:
    tensors = (torch.from_numpy(features.pooled) for features in theirs)
    expected = kid_features_to_metric(*tensors, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    value = float(kid_of_subsets(ours[0].pooled, ours[1].pooled, subsets, size).mean())
    return Row(f"kid, {subsets} x {size}", "torch-fidelity", value, expected["kernel_inception_distance_mean"])


def end_to_end(n: int) -> list[Row]:
    sets = random_images(n, 0, 1.0), random_images(n, 1, 1.3)
    with tempfile.TemporaryDirectory() as folder:
        path, digest, tensors = random_weights(Path(folder))
        extractors = [Inception("cpu", resize, path, digest) for resize in (TENSORFLOW, PYTORCH_FID)]
    network, other = torch_fidelity_network(tensors), pytorch_fid_network(tensors)
    ours, halves = ((extract(sets[0], extractor), extract(sets[1], extractor)) for extractor in extractors)
    theirs = of_network(network, sets[0]), of_network(network, sets[1])
    with torch.inference_mode():
        pooled = [other(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)[0].flatten(1).numpy() for images in sets]
    return [
        *compared("torch-fidelity", FIDELITY, values("torch_fidelity", FIDELITY, ours), fidelity(*theirs)),
        kid_row(ours, theirs, 20, n * 4 // 5),
        *compared("ADM's formulas", ADM, values("inception_adm_exact", ADM, ours), adm_values(*theirs)),
        Row("fid", "pytorch-fid", values("pytorch_fid", ("fid",), halves)["fid"], pytorch_fid(*pooled)),
    ]


def random_features(n: int, seed: int, shift: float) -> Features:
    """Correlated, mostly positive; 16 logits whose class goes with the image's number, so that the order of images matters."""
    draw, mix = np.random.default_rng(seed), np.random.default_rng(9).standard_normal((64, 64)) / 8
    x = np.maximum(draw.standard_normal((n, 64)) @ mix + shift, 0).astype(np.float32)
    logits = 2 * draw.standard_normal((n, 16)) + 4 * np.eye(16)[np.arange(n) * 16 // n]
    return Features(x, x[:, :32], logits.astype(np.float32), 32, "random")


def from_features(n: int, m: int) -> list[Row]:
    ours = random_features(n, 0, 0.6), random_features(m, 1, 0.5)
    frechet_and_is = ("fid", "sfid", "is")
    by_adm = {name: adm.frechet(getattr(ours[0], part), getattr(ours[1], part)) for name, part in PARTS.items()}
    by_adm["is"] = adm.inception_score(ours[0].logits)
    return [
        *compared("torch-fidelity", FIDELITY, values("torch_fidelity", FIDELITY, ours), fidelity(*ours)),
        kid_row(ours, ours, 100, 1000),
        *compared("ADM's formulas", frechet_and_is, values("inception_adm_exact", frechet_and_is, ours), by_adm),
        Row("fid", "pytorch-fid", values("pytorch_fid", ("fid",), ours)["fid"], pytorch_fid(ours[0].pooled, ours[1].pooled)),
    ]


def table(title: str, rows: list[Row]) -> str:
    body = [[row.score, row.other, f"{row.ours:.8g}", f"{row.theirs:.8g}", f"{row.difference:.1e}"] for row in rows]
    return f"{title}\n\n{markdown_table(['score', 'compared with', 'ours', 'theirs', 'relative difference'], body)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50, help="of each side, through the networks (default: %(default)s)")
    n = parser.parse_args().images
    for category in (FewSamplesWarning, DeprecationWarning, LinAlgWarning):
        warnings.simplefilter("ignore", category)
    tables = {
        f"**From bytes**: {n} generated and {n} real images of 32 x 32 (blurred noise, seeds 0 and 1), random weights of seed 0.": (
            end_to_end(n)
        ),
        "**From features**: 6,000 generated and 5,500 real random vectors of 64 (seeds 0 and 1), sorted by class.": (
            from_features(6000, 5500)
        ),
    }
    print(HEAD, *(table(title, rows) for title, rows in tables.items()), sep="\n")
    return int(max(row.difference for rows in tables.values() for row in rows) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
