import gzip
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from iec.errors import DatasetError
from iec.io import datasets
from iec.io.captions import load_coco_captions
from iec.io.datasets import load_cifar10, load_fashion_mnist, load_fashion_mnist_32, pad_to_32
from iec.metrics.references.prepare import open_dataset


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


@pytest.mark.parametrize("name", ["FashionMNIST/raw/t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"])
def test_fashion_mnist_is_an_idx_file(tmp_path, monkeypatch, name):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    data = bytes.fromhex("00000803 00000003 0000001c 0000001c") + pixels.tobytes()
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if name.endswith(".gz") else bytes
    path.write_bytes(pack(data))
    with pytest.raises(DatasetError, match=r"is not Fashion-MNIST: shape \(3, 28, 28\).*expected \(10000, 28, 28\)"):
        load_fashion_mnist(tmp_path, train=False)
    monkeypatch.setitem(datasets.FASHION_MNIST, False, ("t10k", 3, pixels.mean() / 255))
    images = load_fashion_mnist(tmp_path, train=False)
    assert np.array_equal(images, pixels)
    padded = pad_to_32(images)
    assert np.array_equal(padded, load_fashion_mnist_32(tmp_path, train=False))
    assert padded.shape == (3, 32, 32, 1) and padded.sum() == images.sum() and np.array_equal(padded[:, 2:30, 2:30, 0], images)

    for damaged in (data[:-1], data[:10], b"\0\0\x08\x01" + data[4:]):
        path.write_bytes(pack(damaged))
        with pytest.raises(DatasetError, match="no idx file of images, or truncated"):
            load_fashion_mnist(tmp_path, train=False)


def test_missing_and_damaged_fashion_mnist(tmp_path):
    with pytest.raises(DatasetError, match=r"(?s)none of .*FashionMNIST/raw/train-images-idx3-ubyte, .*dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)
    for damaged in (b"no gzip", gzip.compress(bytes(100))[:-9]):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(DatasetError, match="cannot be read"):
            load_fashion_mnist(tmp_path)


@pytest.mark.parametrize("train", [True, False])
def test_fashion_mnist_is_a_grey_data_set(tmp_path, monkeypatch, train):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    prefix, name = ("train", "fashion_mnist_train") if train else ("t10k", "fashion_mnist_test")
    header = bytes.fromhex("00000803 00000003 0000001c 0000001c")
    (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    monkeypatch.setitem(datasets.FASHION_MNIST, train, (prefix, 3, pixels.mean() / 255))
    source = open_dataset(name, tmp_path)
    assert (len(source), source.resolution, source.channels) == (3, 32, 1)
    assert np.array_equal(next(source.blocks()), pad_to_32(pixels))
    assert source.preprocess.describe(source.channels) == "as stored; grey as stored, repeated to RGB for the extractor"


def write_coco(root, images, captions):
    (root / "annotations").mkdir()
    facts = {
        "images": [{"id": k, "file_name": f"COCO_val2014_{k:012d}.jpg"} for k in images],
        "annotations": [{"id": n, "image_id": k, "caption": text} for n, k, text in captions],
    }
    (root / "annotations/captions_val2014.json").write_text(json.dumps(facts))


def test_coco_captions_are_one_an_image(tmp_path):
    write_coco(tmp_path, (7, 3, 5), [(10, 7, "seven"), (4, 3, "second"), (2, 3, " first\n"), (9, 5, "five")])
    path = tmp_path / "annotations/captions_val2014.json"
    got = load_coco_captions(path, 2)
    assert got == [("COCO_val2014_000000000003.jpg", "first"), ("COCO_val2014_000000000005.jpg", "five")]
    with pytest.raises(DatasetError, match="3 images, not 5000"):
        load_coco_captions(path)
    path.write_text("{}")
    with pytest.raises(DatasetError, match="no file of captions"):
        load_coco_captions(path)


def test_imagenet_is_a_folder_a_class(tmp_path):
    for name in ("n02/b.JPEG", "n01/z.JPEG", "n01/a.JPEG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (300, 280)).save(tmp_path / name)
    source = open_dataset("imagenet_256", tmp_path)
    assert source.names == ["n01/a.JPEG", "n01/z.JPEG", "n02/b.JPEG"] and source.label == "ImageNet (ILSVRC 2012) train"
    assert next(source.blocks()).shape == (3, 256, 256, 3)


def test_lsun_is_an_lmdb_folder(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    folder = tmp_path / "church_outdoor_train_lmdb"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 256, 300, 3), dtype=np.uint8)
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for k, image in enumerate(pixels):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="WEBP", lossless=True)
            transaction.put(f"key{9 - k}".encode(), buffer.getvalue())
    source = open_dataset("lsun_church_256", tmp_path)
    assert source.names == tuple(f"key{k}" for k in range(5, 10))
    assert np.array_equal(next(source.blocks()), pixels[::-1, :, 22:278])
    with pytest.raises(DatasetError, match=r"bedroom_train_lmdb is no lmdb folder.*https://github.com/fyu/lsun"):
        open_dataset("lsun_bedroom_256", tmp_path)


def test_lsun_without_the_package_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DatasetError, match="pip install lmdb"):
        open_dataset("lsun_church_256", tmp_path)
