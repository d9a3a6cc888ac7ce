from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iec.errors import MetricError, WeightsError
from iec.metrics.extractors.local_weights import VARIABLE, WeightsFile
from iec.metrics.paired import DEFAULT, LPIPS, PAIRED, mean_of_pairs, paired
from iec.metrics.perceptual import ALEXNET, Perceptual

LAYERS = ((0, 64, 3, 11, 4, 2), (3, 192, 64, 5, 1, 2), (6, 384, 192, 3, 1, 1), (8, 256, 384, 3, 1, 1), (10, 256, 256, 3, 1, 1))
"""Of AlexNet: place, channels out and in, kernel, stride, padding; a 3 x 3 maximum of stride 2 follows the first two."""
FILE = WeightsFile(("alexnet.pth",), "https://example.org/alexnet.pth")
draw = np.random.default_rng(0)
REAL = draw.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
OTHER = np.clip(REAL + draw.normal(0, 30, REAL.shape), 0, 255).astype(np.uint8)


def tensors():
    """Random ones in the layout of torchvision's file."""
    generator, values = torch.Generator().manual_seed(0), {"classifier.6.bias": torch.zeros(1000)}
    for place, out, channels, kernel, *_ in LAYERS:
        values[f"features.{place}.weight"] = torch.randn(out, channels, kernel, kernel, generator=generator) / (
            channels**0.5 * kernel
        )
        values[f"features.{place}.bias"] = torch.randn(out, generator=generator) / 10
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(tensors(), folder / "alexnet.pth")
    return folder


@pytest.fixture
def measure(folder, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("tried to download"))
    return Perceptual(FILE)


def definition(images, reference):
    """From the paper, with the package's weights and its input scaling."""
    heads, values = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", "cpu", weights_only=True), tensors()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((torch.tensor(v) / 127.5 - 1 - shift).div(scale).permute(0, 3, 1, 2) for v in (images, reference))
    total = 0
    for k, (place, _, _, _, stride, padding) in enumerate(LAYERS):
        weight, bias = values[f"features.{place}.weight"], values[f"features.{place}.bias"]
        x, y = (F.relu(F.conv2d(v, weight, bias, stride, padding)) for v in (x, y))
        a, b = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
        total = total + ((a - b) ** 2 * heads[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
        if place in (0, 3):
            x, y = (F.max_pool2d(v, 3, 2) for v in (x, y))
    return total.numpy()


def test_it_is_the_papers_distance_and_zero_for_identical_images(measure):
    values = measure(OTHER, REAL)
    np.testing.assert_allclose(values, definition(OTHER, REAL), rtol=1e-4)
    assert values.dtype == np.float64 and (values > 0).all()
    np.testing.assert_array_equal(measure(REAL, REAL), 0)
    np.testing.assert_array_equal(measure(OTHER[1:2], REAL[1:2]), values[1:2])  # an image depends on no other
    grey = REAL[..., :1]
    np.testing.assert_array_equal(measure(OTHER[..., :1], grey), measure(OTHER[..., [0, 0, 0]], grey[..., [0, 0, 0]]))


def test_it_is_a_paired_score_on_request_with_an_interval(measure):
    assert PAIRED["lpips"] is LPIPS and "lpips" not in DEFAULT and not LPIPS.higher_is_better
    own = replace(LPIPS, measure=measure, require=measure.require)
    own.require(32)
    values = paired([OTHER[:2], OTHER[2:]], [REAL[:2], REAL[2:]], [own])["lpips"]
    np.testing.assert_allclose(values, measure(OTHER, REAL), rtol=1e-6)
    interval = mean_of_pairs(values)
    assert interval.low <= interval.value <= interval.high


def test_nothing_is_fetched_and_what_is_missing_or_too_small_is_said_first(measure, tmp_path, monkeypatch):
    with pytest.raises(MetricError, match=r"31 x 31 pixels, these have 28. Leave lpips out of paired"):
        measure.require(28)
    with pytest.raises(MetricError, match="these have 30"):
        measure(REAL[:, :30], REAL[:, :30])
    assert measure(REAL[:, :31, :31], OTHER[:, :31, :31]).shape == (3,)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for call in (lambda: Perceptual().require(32), lambda: Perceptual()(REAL, OTHER)):
        with pytest.raises(
            WeightsError, match=f"alexnet-owt-7be5be79.pth is neither in(.|\n)*curl -L --create-dirs -o .*{ALEXNET.url}"
        ):
            call()


def test_a_file_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    values = tensors()
    del values["features.3.bias"]
    for content in (values, tensors() | {"features.12.weight": torch.zeros(1)}, tensors() | {"features.0.bias": torch.zeros(3)}):
        torch.save(content, tmp_path / "alexnet.pth")
        with pytest.raises(WeightsError, match="does not hold torchvision's AlexNet: (.|\n)*Delete it and get it again"):
            Perceptual(FILE)(REAL, OTHER)
    (tmp_path / "alexnet.pth").write_bytes(b"no pickle")
    with pytest.raises(WeightsError, match="does not hold torchvision's AlexNet"):
        Perceptual(FILE)(REAL, OTHER)
