import numpy as np
import pytest
from PIL import Image

from iec.datasets import load_cifar10
from iec.errors import DatasetError


def test_png_rows_are_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, 1024, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "test_batch.png", compress_level=0)
    images = load_cifar10(tmp_path, train=False)
    assert images.shape == (10_000, 32, 32, 3)
    assert np.array_equal(images[7, 1, 2], pixels[7, 34])


def test_missing_wrong_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"cifar-10-batches-py nor .*test_batch\.png"):
        load_cifar10(tmp_path, train=False)
    Image.new("RGB", (4, 4)).save(tmp_path / "test_batch.png")
    with pytest.raises(DatasetError, match=r"expected \(10000, 1024, 3\)"):
        load_cifar10(tmp_path, train=False)
    for k in range(1, 6):
        Image.new("RGB", (1024, 10_000)).save(tmp_path / f"data_batch_{k}.png")
    with pytest.raises(DatasetError, match="is not the CIFAR-10 training set: 50000 images with channel"):
        load_cifar10(tmp_path)
