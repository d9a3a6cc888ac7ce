import dataclasses

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from iec.errors import ConfigError, MetricError
from iec.metrics.extractors.features import Features
from iec.metrics.extractors.inception import Inception
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.kid import kid_of_subsets
from iec.metrics.metric import OWN_RULES
from iec.metrics.protocol import PROTOCOLS, Protocol, protocol
from iec.metrics.references.reference import Reference
from iec.metrics.scores import METRICS, NAMES, available, require_images, score_features
from tests.metrics import adm

N, M, D = 1203, 1100, 24


def network_like(draw, n, width, shift):
    """Correlated, mostly positive float32 features."""
    x = draw.standard_normal((n, width)) @ np.random.default_rng(9).standard_normal((width, width)) / width**0.5
    return np.maximum(x + shift, 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    """(features of N images, reference of M with all of its features, the real spatial features)."""
    draw = np.random.default_rng(0)
    logits = 3 * draw.standard_normal((N, 12)).astype(np.float32) + 4 * np.eye(12, dtype=np.float32)[np.arange(N) // 101 % 12]
    features = Features(network_like(draw, N, D, 0.6), network_like(draw, N, 14, 0.2), logits, 32, "hash")
    pooled, spatial = network_like(draw, M, D, 0.3), network_like(draw, M, 14, 0.0)
    parts = GaussianStatistics.of(pooled), GaussianStatistics.of(spatial), pooled
    return features, Reference(*parts, {"n": M, "resolution": 32, "extractor_hash": "hash"}), spatial


def values(name, made, **options):
    return {key: s.value for key, s in protocol(name).score(made[0], made[1], bootstrap=0, **options).items()}


def test_torch_fidelity(made):
    """Ours in float64 against its float32."""
    features, reference, _ = made
    a, b = torch.from_numpy(features.pooled), torch.from_numpy(reference.kid)
    expected = {
        "fid": fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), verbose=False),
        "is": isc_features_to_metric(torch.from_numpy(features.logits)),
        "kid": kid_features_to_metric(a, b, verbose=False),
        **dict.fromkeys(("precision", "recall"), prc_features_to_metric(a, b, verbose=False)),
    }
    key = {"fid": "frechet_inception_distance", "is": "inception_score_mean", "kid": "kernel_inception_distance_mean"}
    got = values("torch_fidelity", made)
    assert list(got) == list(expected)
    for name, value in got.items():
        assert value == pytest.approx(expected[name][key.get(name, name)], rel=2e-6), name
    assert got["recall"] > 0 and got["precision"] < 1


@pytest.mark.parametrize("chunk", [5000, 500])
def test_adm_exact(made, chunk, monkeypatch):
    """With chunks of 500 the last one has 203 images and weighs as much as the others."""
    features, reference, spatial = made
    monkeypatch.setattr("iec.metrics.inception_score.CHUNK", chunk)
    got = values("inception_adm_exact", made)
    assert got["fid"] == pytest.approx(adm.frechet(features.pooled, reference.kid), rel=1e-6)
    assert got["sfid"] == pytest.approx(adm.frechet(features.spatial, spatial), rel=1e-6)
    assert got["is"] == pytest.approx(adm.inception_score(features.logits, chunk), rel=1e-9)
    small = dataclasses.replace(features, pooled=features.pooled[:90], spatial=features.spatial[:90], logits=features.logits[:90])
    few = dataclasses.replace(reference, kid=reference.kid[:120])
    got = values("inception_adm_exact", (small, few))
    assert (got["precision"], got["recall"]) == adm.precision_recall(few.kid, small.pooled)


def test_inception_differs_from_adm_in_the_order_alone(made, monkeypatch):
    ours, theirs = values("inception", made), values("inception_adm_exact", made)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-12)  # one chunk: no order
    monkeypatch.setattr("iec.metrics.inception_score.CHUNK", 100)
    ours, theirs = values("inception", made), values("inception_adm_exact", made)
    assert theirs["is"] < 0.8 * ours["is"]  # the images are ordered by class
    assert [name for name in theirs if ours[name] != pytest.approx(theirs[name], rel=1e-12)] == ["is"]


def test_pytorch_fid(made):
    assert values("pytorch_fid", made) == {"fid": pytest.approx(adm.frechet(made[0].pooled, made[1].kid), rel=1e-6)}


def test_intervals(made):
    got = protocol("inception").score(made[0], made[1], bootstrap=100)
    how = {name: s.interval for name, s in got.items()}
    assert how == {
        "fid": "linear",
        "sfid": "linear",
        "is": "bootstrap",
        "precision": "bootstrap",
        "recall": "none",
        "kid": "bootstrap",
    }
    assert all(s.low < s.value < s.high for s in got.values() if s.interval != "none")
    resampled = score_features(made[0], made[1], "x", ("fid", "sfid"), bootstrap=100)
    for name, s in resampled.items():
        assert s.interval == "bootstrap" and s.value == pytest.approx(got[name].value, rel=1e-12)
        assert (got[name].high - got[name].low) / (s.high - s.low) == pytest.approx(1, abs=0.35)
    assert {s.interval for s in protocol("inception").score(made[0], made[1], bootstrap=0).values()} == {"none"}


def test_names():
    own = {"efficientnet_lite0", "efficientnet_lite0_deep"}
    registered = {"dinov2_vit_s_14", "dinov2_vit_l_14", "clip_vit_b_32", "clip_vit_l_14_336px"}
    assert own | registered | {"inception", "inception_adm_exact", "pytorch_fid", "torch_fidelity"} == set(PROTOCOLS)
    protocols = [protocol(name) for name in PROTOCOLS]
    assert [p.name for p in protocols] == list(PROTOCOLS) and len({p.label for p in protocols}) == len(protocols)
    assert all(set(p.scores) <= set(METRICS) and len(set(p.scores)) == len(p.scores) for p in protocols)
    assert protocol("efficientnet_lite0").default == NAMES
    with pytest.raises(ConfigError, match=r"Unknown metrics 'fid'; choose one of .*inception, inception_adm_exact"):
        protocol("fid")


def test_a_score_that_the_protocol_does_not_give(made):
    with pytest.raises(ConfigError, match="The protocol pytorch_fid has no score 'is'; choose from fid"):
        protocol("pytorch_fid").score(made[0], made[1], ("fid", "is"))


@pytest.mark.parametrize(
    ("part", "lost"), [("pooled", {"fid", "fid_inf"}), ("spatial", {"sfid"}), ("kid", {"kid", "precision", "recall"})]
)
def test_a_part_that_the_reference_lacks(made, part, lost):
    reference = dataclasses.replace(made[1], **{part: None})
    rules = protocol("inception")
    rest = available(rules.scores, reference)
    assert set(rules.scores) - set(rest) == lost
    assert set(rules.score(made[0], reference, rest, bootstrap=0)) == set(rest)
    for name in lost:
        with pytest.raises(MetricError, match=f"its part '{part}'.*{name} compares.*iec.metrics.references"):
            rules.score(made[0], reference, (name,), bootstrap=0)


def test_fid_at_infinity_on_request_alone(made):
    rules = protocol("inception")
    assert all("fid_inf" not in protocol(name).default for name in PROTOCOLS)
    got = rules.score(made[0], made[1], ("fid", "fid_inf"), bootstrap=10)
    assert got["fid_inf"].value < got["fid"].value and got["fid_inf"].interval == "none"


def test_kid_over_subsets_needs_enough_images(made):
    with pytest.raises(MetricError, match="subsets of 1000.*1203 and 999 real ones"):
        kid_of_subsets(made[0].pooled, made[1].kid[:999])


@pytest.mark.parametrize(("name", "score", "least"), [("torch_fidelity", "kid", 1000), ("inception", "precision", 4)])
def test_too_few_real_images_are_known_beforehand(made, name, score, least):
    rules = protocol(name).rules
    require_images([score], N, dataclasses.replace(made[1], kid=made[1].kid[:least]), rules)
    with pytest.raises(MetricError, match=f"of {least - 1} real images, {score} needs {least}"):
        require_images([score], N, dataclasses.replace(made[1], kid=made[1].kid[: least - 1]), rules)


@pytest.mark.parametrize(
    ("name", "score", "least"),
    [("torch_fidelity", "is", 10), ("torch_fidelity", "kid", 1000), ("inception", "recall", 4), ("inception", "fid_inf", 250)],
)
def test_too_few_images_are_known_beforehand(made, name, score, least):
    rules = protocol(name).rules
    require_images([score], least, made[1], rules)
    with pytest.raises(MetricError, match=f"{least - 1} images are too few for {score}, which needs {least}"):
        require_images([score], least - 1, made[1], rules)


def test_the_extractor_is_made_for_the_device():
    seen = []
    made = Protocol("p", "P", seen.append, ("fid",))
    made.extractor("cuda")
    assert seen == ["cuda"] and protocol("inception").make is Inception
    assert protocol("efficientnet_lite0").rules == OWN_RULES
