import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from iec.errors import ArtifactError
from iec.metrics.features import extract
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.reference import Reference, load_reference, reference_path


@pytest.fixture
def made(tiny, random_images, tmp_path):
    """(path, reference, extractor) of a small saved reference."""
    extractor = tiny()
    features = extract(random_images, extractor)
    provenance = {"n": 40, "resolution": 8, "extractor": extractor.identity, "extractor_hash": extractor.hash}
    statistics = GaussianStatistics.of(features.pooled), GaussianStatistics.of(features.spatial)
    reference = Reference(*statistics, features.pooled[::4], provenance)
    path = tmp_path / "sub" / "toy.tiny.safetensors"
    reference.save(path)
    return path, reference, extractor


def test_round_trip(made):
    path, reference, extractor = made
    got = load_reference(path, extractor, resolution=8)
    assert got.hash == reference.hash and got.provenance == reference.provenance and got.pooled.n == 40
    np.testing.assert_array_equal(got.pooled.cov, reference.pooled.cov)
    np.testing.assert_array_equal(got.spatial.mean, reference.spatial.mean)
    np.testing.assert_array_equal(got.kid, reference.kid)


def test_missing_names_file_and_command(tmp_path, tiny):
    with pytest.raises(ArtifactError, match=r"nothing.safetensors.*python scripts/prepare_reference.py"):
        load_reference(tmp_path / "nothing.safetensors", tiny())


def test_every_truncation_is_refused(made):
    path, _, extractor = made
    data = path.read_bytes()
    for keep in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(ArtifactError, match="truncated.*prepare_reference"):
            load_reference(path, extractor)


def test_every_flipped_byte_is_refused(made):
    """Header, metadata and tensors alike."""
    path, _, extractor = made
    data = path.read_bytes()
    for position in range(0, len(data), 37):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ArtifactError):
            load_reference(path, extractor)


def test_another_safetensors_file_is_refused(tmp_path, tiny):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match="not a reference file"):
        load_reference(tmp_path / "model.safetensors", tiny())


def test_another_extractor_is_refused_and_the_difference_named(made, tiny):
    with pytest.raises(ArtifactError, match="another extractor: version: 1, now 2"):
        load_reference(made[0], tiny(version=2))


def test_another_resolution_is_refused(made):
    with pytest.raises(ArtifactError, match="8 x 8 images, not 32 x 32"):
        load_reference(made[0], made[2], resolution=32)


def test_the_hash_covers_provenance_and_every_tensor(made):
    reference = made[1]
    others = [
        dataclasses.replace(reference, provenance={**reference.provenance, "date": "2001-01-01"}),
        dataclasses.replace(reference, kid=reference.kid + 1),
        dataclasses.replace(reference, pooled=GaussianStatistics(40, reference.pooled.mean + 1, reference.pooled.cov)),
        dataclasses.replace(reference, spatial=GaussianStatistics(40, reference.spatial.mean, reference.spatial.cov * 2)),
    ]
    assert len({r.hash for r in [reference, *others]}) == 5


def test_the_shipped_reference(reference, extractor):
    facts = reference.provenance
    assert (reference.pooled.n, reference.resolution, facts["dataset"]) == (50_000, 32, "CIFAR-10 train")
    assert reference.kid.shape == (5000, 112) and reference.kid.dtype == np.float32
    assert reference_path("cifar10_train", extractor).stat().st_size < 3e6
    assert {"images_sha256", "date", "versions", "command", "resize", "extractor"} <= set(facts)
    for statistics in (reference.pooled, reference.spatial):
        assert np.linalg.eigvalsh(statistics.cov).min() > 0
    error = np.abs(reference.kid.mean(axis=0) - reference.pooled.mean) / np.sqrt(np.diag(reference.pooled.cov) / 5000)
    assert error.max() < 5  # the subset is a fair draw of the whole
