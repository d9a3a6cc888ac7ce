from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iec.io.files import canonical_hash
from iec.metrics.extractors.efficientnet import EffNetLite0
from iec.metrics.references.reference import load_reference, reference_path


@pytest.fixture(scope="session")
def extractor():
    return EffNetLite0()


@pytest.fixture(scope="session")
def reference(extractor):
    return load_reference(reference_path("cifar10_train", extractor), extractor, resolution=32)


@pytest.fixture(scope="session")
def real_images():
    """The first 64 images of CIFAR-10's test set, uint8 [64, 32, 32, 3]."""
    with Image.open(Path(__file__).parent / "cifar10_test_64.png") as image:
        pixels = np.asarray(image)
    return np.ascontiguousarray(pixels.reshape(8, 32, 8, 32, 3).swapaxes(1, 2).reshape(64, 32, 32, 3))


class TinyExtractor:
    """Mean colour and its products, a 2 x 2 thumbnail, and 5 random logits: no network."""

    name, label, batch = "tiny", "Tiny", 7

    def __init__(self, version=1):
        self.identity = {"version": version, "input_size": 8, "resize": "none"}
        self.hash = canonical_hash(self.identity)
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        x = images.astype(np.float32) / 255
        pooled = x.mean(axis=(1, 2))
        half = x.shape[1] // 2
        spatial = x[:, : 2 * half, : 2 * half].reshape(len(x), 2, half, 2, half, 3).mean(axis=(2, 4)).reshape(len(x), -1)
        weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
        return pooled, spatial, 8 * pooled @ weights


@pytest.fixture
def tiny():
    return TinyExtractor


@pytest.fixture
def random_images():
    return np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
