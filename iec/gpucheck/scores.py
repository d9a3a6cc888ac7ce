"""Part ``scores``: the extractors' features on the device against the CPU, and the scores that follow from either.

Extractors compute in float32 without TF32, whatever the process allows: so the limit of features is float32's also where TF32 is
allowed around them. The maths of scores is numpy's on the CPU: what a device changes of a score comes from its features. Scores are
shown with four digits, and are allowed a relative difference of `DIGITS`, which these do not show. (On a CPU, features of
EffNet-Lite0 with errors at their limit, 4e-5, changed KID and CMMD by 6e-5 and the others by less.)
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from iec.gpucheck.arithmetic import FLOAT32, TF32, compared, depth, supported
from iec.gpucheck.inception import random_inception
from iec.gpucheck.part import Bench, Line, Part, attempted
from iec.io.files import sha256
from iec.metrics.clip_score import CLIPScorer
from iec.metrics.extractors.efficientnet import EffNetLite0
from iec.metrics.extractors.features import Extractor, Features, extract
from iec.metrics.extractors.inception import PYTORCH_FID, TENSORFLOW, Inception
from iec.metrics.frechet import FewSamplesWarning, GaussianStatistics
from iec.metrics.references.reference import Reference
from iec.metrics.scores import METRICS, score_features
from iec.models.text import save_tokenizer

IMAGES, RESOLUTION, DIGITS = 50, 32, 1e-4
MANY_IMAGES = "fid_inf"
"""A score of thousands of images; it is made of FIDs."""


def measure(bench: Bench) -> Iterator[Line]:
    yield from attempted("EffNet-Lite0", partial(extractor_lines, bench, EffNetLite0))
    if bench.toy:
        yield Line.skipped("Inception", "batches of 50 images of 299 x 299 take long on a CPU")
    else:
        path = random_inception(bench.folder)
        for resize in (TENSORFLOW, PYTORCH_FID):
            make = partial(Inception, resize=resize, weights=path, digest=sha256(path))
            yield from attempted(resize.label, partial(extractor_lines, bench, make))
    yield from attempted("CLIP", partial(clip_lines, bench))


PART = Part("scores", "Do extractors see and scores say what they do on a CPU?", measure, seconds=30)


def extractor_lines(bench: Bench, make: Callable[[torch.device], Any]) -> Iterator[Line]:
    """make: the extractor on a device."""
    own: Any = make(torch.device("cpu"))
    expected, real = extract(pictures(0), own), extract(pictures(1), own)
    for allowed in supported(bench.device, (FLOAT32, TF32)):
        with allowed.active(bench.device):
            features = extract(pictures(0), make(bench.device))
        around = "" if allowed is FLOAT32 else ", TF32 allowed around it"
        for name in ("pooled", "spatial", "logits"):
            value, reference = (torch.from_numpy(getattr(f, name)) for f in (features, expected))
            yield compared(f"{own.label}: {name}{around}", FLOAT32, value, reference, depth(own.network))
        if allowed is FLOAT32:
            yield from score_lines(own, features, expected, real)


def score_lines(extractor: Extractor, features: Features, expected: Features, real: Features) -> Iterator[Line]:
    """Of all scores but `MANY_IMAGES`; real: what stands for the reference images."""
    provenance = {"extractor_hash": extractor.hash, "resolution": RESOLUTION}
    names = tuple(name for name in METRICS if name != MANY_IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        reference = Reference(GaussianStatistics.of(real.pooled), GaussianStatistics.of(real.spatial), real.pooled, provenance)
        ours, theirs = (score_features(f, reference, extractor.label, names, bootstrap=0) for f in (features, expected))
    for name in names:
        a, b = ours[name].value, theirs[name].value
        yield Line.at_most(ours[name].label, abs(a - b) / max(abs(b), DIGITS), DIGITS, "relative difference")


def pictures(seed: int) -> np.ndarray:
    """Smooth coloured noise, uint8 [IMAGES, 32, 32, 3]."""
    coarse = np.random.default_rng(seed).uniform(0, 256, (IMAGES, 3, 4, 4)).astype(np.float32)
    fine = nn.functional.interpolate(torch.from_numpy(coarse), (RESOLUTION, RESOLUTION), mode="bilinear")
    return fine.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def clip_lines(bench: Bench) -> Iterator[Line]:
    """Cosines of a CLIP with random weights, which are near 0: their error is relative to 100, the score of a perfect pair."""
    folder = random_clip(bench.folder / "clip", bench.toy)
    own = CLIPScorer(folder)
    captions = [f"picture number {n}" for n in range(IMAGES)]
    expected = own.per_image(pictures(0), captions)
    for allowed in supported(bench.device, (FLOAT32, TF32)):
        with allowed.active(bench.device):
            values = CLIPScorer(folder, bench.device).per_image(pictures(0), captions)
        around = "" if allowed is FLOAT32 else ", TF32 allowed around it"
        error = float(np.abs(values - expected).max()) / 100
        yield Line.at_most(f"CLIP score{around}", error, FLOAT32.limit(*depth(own.model)), "of 100")


def random_clip(folder: Path, toy: bool) -> Path:
    """A CLIP in transformers' layout: ViT-B/32, or at toy size layers of 32 channels."""
    from transformers import CLIPConfig, CLIPModel

    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 32, "patch_size": 8}) if toy else CLIPConfig()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
