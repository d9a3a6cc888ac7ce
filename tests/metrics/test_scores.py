import dataclasses
import json
import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from iec.errors import ArtifactError, MetricError
from iec.metrics.extractors.features import extract
from iec.metrics.frechet import FewSamplesWarning, GaussianStatistics, frechet_distance
from iec.metrics.inception_score import inception_score
from iec.metrics.kid import kid
from iec.metrics.record import Record
from iec.metrics.references.reference import Reference
from iec.metrics.scores import NAMES, score, score_features

pytestmark = pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")


@pytest.fixture(scope="module")
def real_scores(real_images, reference, extractor):
    """Of 50 images, one batch of the extractor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        return score(real_images[:50], reference, extractor, bootstrap=0)


@pytest.fixture
def toy(tiny, random_images):
    """(features, reference, extractor): darker images against random ones."""
    extractor = tiny()
    real = extract(random_images, extractor)
    provenance = {"n": 40, "resolution": 8, "extractor": extractor.identity, "extractor_hash": extractor.hash}
    reference = Reference(GaussianStatistics.of(real.pooled), GaussianStatistics.of(real.spatial), real.pooled, provenance)
    return extract((random_images * 0.8).astype(np.uint8), extractor), reference, extractor


def test_values_are_those_of_the_metrics(toy):
    features, reference, _ = toy
    scores = score_features(features, reference, "Tiny", bootstrap=20)
    assert list(scores) == list(NAMES)
    assert [s.label for s in scores.values()] == ["FID (Tiny)", "KID (Tiny)", "IS (Tiny)", "sFID (Tiny)"]
    assert [s.higher_is_better for s in scores.values()] == [False, False, True, False]
    expected = {
        "fid": frechet_distance(GaussianStatistics.of(features.pooled), reference.pooled),
        "sfid": frechet_distance(GaussianStatistics.of(features.spatial), reference.spatial),
        "kid": kid(features.pooled, reference.kid),
        "is": inception_score(features.logits),
    }
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value, rel=1e-9)
        assert scores[name].low < scores[name].value < scores[name].high
        assert (scores[name].n, scores[name].resamples) == (40, 20)


def test_same_digits_again_and_through_both_doors(toy, random_images):
    features, reference, extractor = toy
    first = score_features(features, reference, "Tiny", bootstrap=10, seed=3)
    assert score_features(features, reference, "Tiny", bootstrap=10, seed=3) == first
    dark = (random_images * 0.8).astype(np.uint8)
    assert score(iter([dark[:9], dark[9:]]), reference, extractor, bootstrap=10, seed=3) == first
    other = score_features(features, reference, "Tiny", bootstrap=10, seed=4)["fid"]
    assert other.value == first["fid"].value and other.low != first["fid"].low


def test_without_resamples_there_is_no_interval(toy):
    features, reference, _ = toy
    got = score_features(features, reference, "Tiny", names=("kid", "is"), bootstrap=0)
    assert list(got) == ["kid", "is"] and all(np.isnan([s.low, s.high]).all() for s in got.values())


def test_order_of_images_does_not_matter(toy):
    features, reference, _ = toy
    reversed_ = dataclasses.replace(
        features, pooled=features.pooled[::-1], spatial=features.spatial[::-1], logits=features.logits[::-1]
    )
    a, b = (score_features(f, reference, "Tiny", bootstrap=0) for f in (features, reversed_))
    for name in NAMES:
        assert a[name].value == pytest.approx(b[name].value, rel=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"extractor": "other"}, "different extractors"),
        (lambda f: {"resolution": 16}, "16 pixels wide"),
        (lambda f: {"pooled": np.full_like(f.pooled, np.nan)}, "NaN"),
        (lambda f: {"logits": np.full_like(f.logits, np.inf)}, "NaN"),
        (lambda f: {"pooled": np.ones_like(f.pooled)}, "same features"),
        (lambda f: {"spatial": f.spatial[:5]}, "shape"),
        (lambda f: {"pooled": f.pooled[:1], "spatial": f.spatial[:1], "logits": f.logits[:1]}, "at least 2"),
    ],
)
def test_refusals(toy, change, message):
    features, reference, _ = toy
    with pytest.raises(MetricError, match=message):
        score_features(dataclasses.replace(features, **change(features)), reference, "Tiny", bootstrap=0)


def test_unknown_score(toy):
    with pytest.raises(MetricError, match="'vibes'; choose from fid, kid, is, sfid"):
        score_features(toy[0], toy[1], "Tiny", names=("vibes",))


def test_few_images_warn_once_for_each_distance(real_images, reference, extractor):
    features = extract(real_images[:50], extractor)
    with pytest.warns(FewSamplesWarning) as seen:
        score_features(features, reference, extractor.label, names=("fid", "sfid"), bootstrap=3)
    assert len([w for w in seen if w.category is FewSamplesWarning]) == 2


def noise(images, deviation):
    moved = images + np.random.default_rng(0).normal(0, deviation, images.shape)
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)


def blur(images, deviation):
    return np.rint(gaussian_filter(images.astype(np.float32), (0, deviation, deviation, 0))).astype(np.uint8)


def halves_swapped(images, share):
    changed, k = images.copy(), round(share * len(images))
    changed[:k] = np.roll(images[:k], images.shape[2] // 2, axis=2)
    return changed


@pytest.mark.parametrize(
    ("degrade", "levels", "names"),
    [
        (noise, (5, 12, 30), NAMES),
        (blur, (0.6, 1.0, 1.5), ("fid", "kid", "sfid")),
        (halves_swapped, (0.5, 1.0), ("fid", "sfid")),
    ],
)
def test_real_images_score_worse_the_more_they_are_degraded(real_images, real_scores, reference, extractor, degrade, levels, names):
    changed = (degrade(real_images[:50], level) for level in levels)
    steps = [real_scores, *(score(images, reference, extractor, bootstrap=0) for images in changed)]
    for name in names:
        values = [step[name].value for step in steps]
        if steps[0][name].higher_is_better:
            values = values[::-1]
        assert values == sorted(values) and len(set(values)) == len(values), (name, values)


def test_real_images_are_near_the_floor_and_noise_is_far(real_scores, reference, extractor):
    random = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    far = score(random, reference, extractor, bootstrap=0)
    assert far["fid"].value > 10 * real_scores["fid"].value
    assert far["is"].value < real_scores["is"].value / 3


def test_record_round_trip(toy, tmp_path):
    features, reference, extractor = toy
    scores = score_features(features, reference, "Tiny", bootstrap=5)
    record = Record.of("tiny", scores, seed=7, manifest_hash="abc", reference=reference, extractor=extractor)
    record.save(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == record
    plain = json.loads((tmp_path / "record.json").read_text())
    assert plain["scores"]["fid"]["label"] == "FID (Tiny)" and plain["n"] == 40 and plain["seed"] == 7
    assert plain["reference_hash"] == reference.hash and plain["extractor_hash"] == extractor.hash
    assert {"python", "torch", "numpy"} <= set(plain["versions"])


def test_a_record_is_of_one_set_of_images(toy):
    features, reference, extractor = toy
    scores = score_features(features, reference, "Tiny", bootstrap=0)
    scores["is"] = dataclasses.replace(scores["is"], n=39)
    with pytest.raises(ArtifactError, match="N = "):
        Record.of("tiny", scores, 0, "abc", reference, extractor)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"scores": {"fid": {}}}', '{"scores": 3}'])
def test_damaged_records_are_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match="Delete it"):
        Record.read(path)
    with pytest.raises(ArtifactError):
        Record.read(tmp_path / "missing.json")
