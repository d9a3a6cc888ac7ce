"""Ideal models: what they are made of, what is refused, and that the rest of the house takes them."""

import gzip
import shutil

import numpy as np
import pytest
import torch

from iec.efficiency.prepare import quantize
from iec.efficiency.quantization import PTQConfig
from iec.errors import ConfigError, DatasetError
from iec.io import datasets
from iec.models import card, dataset, load_model
from iec.models.cards import FOLDER
from iec.models.ideal import IdealNetwork
from iec.models.source import Source
from iec.runs.batches import sample
from iec.sampling.correction import Correction
from iec.sampling.timetable import Timetable

NAME = "ideal_fashion"


@pytest.fixture(scope="module")
def ideal():
    return load_model(NAME, device="cpu")


def test_the_packaged_images_are_what_the_card_says(ideal):
    images = ideal.network.images
    assert ideal.network is ideal.unet and images.shape == (10_000, 1, 32, 32) and images.dtype == torch.float32
    torch.testing.assert_close(torch.stack(images.aminmax()), torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-7)
    assert (images[:, :, :2] == -1).all()  # a black margin
    assert ((images[:, :, 2:30, 2:30].double().mean() + 1) / 2).item() == pytest.approx(0.2868, abs=5e-4)
    assert ideal.identity == {"name": NAME, "weights": card(NAME).packaged.sha256}


def test_it_draws_images_of_its_data_set(ideal):
    samples = sample(ideal, 2, steps=20)
    data = (ideal.network.images.flatten(1) + 1) * 127.5
    distance = torch.cdist(torch.from_numpy(samples.images).flatten(1).float(), data).amin(1)
    assert distance.max() < 32  # a grey level a pixel
    assert samples.images.shape == (2, 32, 32, 1) and not (samples.images[0] == samples.images[1]).all()


def test_a_whole_data_set_is_taken_and_recorded(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    data = bytes.fromhex("00000803 00000003 0000001c 0000001c") + pixels.tobytes()
    monkeypatch.setitem(datasets.FASHION_MNIST, True, ("train", 3, pixels.mean() / 255))
    hashes = set()
    for folder, name, pack in (("a", "train-images-idx3-ubyte.gz", gzip.compress), ("b", "train-images-idx3-ubyte", bytes)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(pack(data))
        source = Source.of(NAME, data=tmp_path / folder)
        hashes.add(source.weights_hash)
        images = source.load("cpu").network.images
        assert np.array_equal(((images[:, 0, 2:30, 2:30] + 1) * 127.5).round().numpy().astype(np.uint8), pixels)
    assert len(hashes) == 1 and hashes != {card(NAME).packaged.sha256}  # by the pixels, however they are stored
    with pytest.raises(DatasetError, match="(?s)No Fashion-MNIST in .*apt install"):
        _ = Source.of(NAME, data=tmp_path).identity


def test_cifar10_is_taken_from_its_folder(monkeypatch, tmp_path):
    with pytest.raises(DatasetError, match=r"(?s)model\.data=DIR.*CIFAR10.*model=ideal_fashion"):
        load_model("ideal_cifar", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setitem(dataset.LOADERS, "cifar10", (lambda root: pixels, ""))
    model = load_model("ideal_cifar", device="cpu", data=tmp_path)
    assert torch.equal(((model.network.images + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8), torch.from_numpy(pixels))


def test_damaged_and_missing_packaged_images_are_refused(tmp_path, monkeypatch):
    shutil.copytree(FOLDER / NAME, tmp_path / NAME)
    monkeypatch.setattr(dataset, "FOLDER", tmp_path)
    file = tmp_path / NAME / dataset.PACKAGED
    assert Source.of(NAME).weights_hash == card(NAME).packaged.sha256
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="is damaged.*git checkout"):
        load_model(NAME, device="cpu")
    file.unlink()
    with pytest.raises(DatasetError, match="no file, expected"):
        load_model(NAME, device="cpu")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"model={NAME}", "model.weights=hub"], "has no weights but a data set"),
        ([f"model={NAME}", "model.dtype=float16"], "computes in float32"),
        ([f"model={NAME}", "model.channels_last=true"], "has no convolutions. Leave model.channels_last unset"),
        ([f"model={NAME}", "model.random_weights=true", "model.data=x"], "Leave one of them unset"),
        ([f"model={NAME}", "model.guidance=2"], "unconditional"),
        (["model.data=x"], "Leave model.data unset"),
        *(
            ([f"model={NAME}", f"efficiency={name}"], "no UNet to quantize or to cache. Use efficiency=none")
            for name in ("w8a8", "w4a8", "deepcache", "cachequant_w8a8", "cachequant_w4a8")
        ),
    ],
)
def test_what_an_ideal_model_does_not_have_is_refused_by_name(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell(*overrides)


def test_a_library_call_is_refused_as_well():
    model = load_model(NAME, device="cpu", random_weights=True)
    with pytest.raises(ConfigError, match="no UNet to quantize"):
        quantize(model, PTQConfig(), Timetable.spaced("quad", 3, model.card.schedule))


def test_random_images_need_no_data_and_are_the_same_every_time():
    a, b = (load_model("ideal_cifar", device="cpu", random_weights=True) for _ in range(2))
    assert torch.equal(a.network.images, b.network.images) and a.weights_hash == "random"
    assert isinstance(a.network, IdealNetwork) and a.network.images.shape == (dataset.RANDOM_IMAGES, 3, 32, 32)
    samples = sample(a, 2, steps=3, correction=Correction())
    assert samples.calls.full == samples.calls.correction == 6
