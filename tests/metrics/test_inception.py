import warnings

import numpy as np
import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from iec.errors import MetricError, WeightsError
from iec.metrics.extractors.features import extract
from iec.metrics.extractors.inception import PYTORCH_FID, Inception, load_network, tensorflow_input
from tests.metrics.inception_networks import pytorch_fid_network, random_weights, torch_fidelity_network


class Three(Inception):
    batch = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(path, sha256, tensors)."""
    return random_weights(tmp_path_factory.mktemp("inception"))


@pytest.fixture(scope="module")
def inception(weights):
    return Three(weights=weights[0], digest=weights[1])


@pytest.fixture(scope="module")
def images(real_images):
    return real_images[:5]


@pytest.fixture(scope="module")
def features(inception, images):
    return extract(images, inception)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(np.abs(theirs).max()))


def test_one_pass_equals_torch_fidelity(weights, images, features):
    network, seen = torch_fidelity_network(weights[2]), {}
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *values: seen.update(conv=values[-1]))
    with torch.inference_mode():
        pooled, logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    close(features.pooled, pooled.numpy())
    close(features.logits, logits.numpy())
    conv = seen["conv"].numpy()  # 5 x 192 x 17 x 17
    assert features.spatial.shape == (5, 2023)
    by_position = features.spatial.reshape(5, 17, 17, 7)  # H, W, C
    close(by_position.transpose(0, 3, 1, 2), conv[:, :7])
    assert np.ptp(pooled.numpy(), axis=0).max() > 100 * np.abs(features.pooled - pooled.numpy()).max()  # not all the same


def test_equals_pytorch_fid_with_its_resize(weights, images, features):
    own = Three(resize=PYTORCH_FID, weights=weights[0], digest=weights[1])
    with torch.inference_mode():
        theirs = (
            pytorch_fid_network(weights[2])(torch.from_numpy(images[:3]).permute(0, 3, 1, 2).float() / 255)[0].flatten(1).numpy()
        )
    pooled = own(images[:3])[0]
    close(pooled, theirs)
    assert np.abs(features.pooled[:3] - theirs).max() > 100 * np.abs(pooled - theirs).max()  # the resize matters
    assert own.hash != Three(weights=weights[0], digest=weights[1]).hash


@pytest.mark.parametrize("size", [32, 64, 256, 299, 400])
def test_the_resize_is_tensorflows_bit_for_bit(size):
    x = torch.randint(0, 256, (2, 3, size, size)).float()
    expected = (interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False) - 128) / 128
    assert torch.equal(tensorflow_input(x), expected)


def test_regrouping_changes_no_bit(inception, images, features):
    again = extract(iter([images[:1], images[1:4], images[4:]]), inception)
    for name in ("pooled", "spatial", "logits"):
        np.testing.assert_array_equal(getattr(features, name), getattr(again, name))


def test_wrong_batches_are_refused(inception):
    for n in (0, 4):
        with pytest.raises(MetricError, match=f"{n} images in one call; pass 1 .. 3"):
            inception(np.zeros((n, 8, 8, 3), np.uint8))


def test_loading_is_strict_and_leaves_the_process_alone(weights, tmp_path):
    state, filters = torch.random.get_rng_state(), list(warnings.filters)
    load_network(weights[0])
    assert torch.equal(torch.random.get_rng_state(), state) and warnings.filters == filters
    tensors = dict(weights[2])
    wrong = {
        "missing": {k: v for k, v in tensors.items() if k != "Mixed_7c.branch1x1.conv.weight"},
        "left over": {**tensors, "AuxLogits.fc.weight": torch.zeros(1)},
        "shape": {**tensors, "fc.weight": torch.zeros(1000, 2048)},
        "not tensors": ["fc.weight"],
    }
    for name, content in wrong.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match="does not hold the tensors of FID's Inception"):
            load_network(tmp_path / name)
    (tmp_path / "short").write_bytes(weights[0].read_bytes()[:10_000])
    with pytest.raises(WeightsError, match="does not hold"):
        load_network(tmp_path / "short")
