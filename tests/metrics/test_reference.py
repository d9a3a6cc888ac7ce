import dataclasses
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from iec.errors import ArtifactError, ConfigError, MetricError
from iec.metrics.extractors.efficientnet import EffNetLite0Deep
from iec.metrics.extractors.features import extract
from iec.metrics.frechet import GaussianStatistics, frechet_distance
from iec.metrics.images.encoded import open_folder
from iec.metrics.images.sources import ArraySource
from iec.metrics.references import gather as gathering
from iec.metrics.references.catalog import ORIGINS, dataset_names
from iec.metrics.references.chunks import CHUNK, Job, images_sha256, kid_positions
from iec.metrics.references.imported import import_statistics
from iec.metrics.references.prepare import make_reference
from iec.metrics.references.reference import UNKNOWN_N, Reference, assemble, load_reference, reference_path
from tests.metrics.conftest import TinyExtractor
from tests.metrics.test_sources import write_folder

CPU = torch.device("cpu")


def open_tiny(device):
    """At the top level, so that other processes can be sent it."""
    return TinyExtractor()


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


def test_the_same_reference_is_the_same_bytes(made):
    """The safetensors library alone would write metadata in a random order."""
    path, reference, _ = made
    written = set()
    for _ in range(10):
        reference.save(path)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_missing_names_file_and_command(tmp_path, tiny):
    with pytest.raises(ArtifactError, match=r"nothing.safetensors do not exist.*python -m iec.metrics.references"):
        load_reference(tmp_path / "nothing.safetensors", tiny())


def test_every_truncation_is_refused(made):
    path, _, extractor = made
    data = path.read_bytes()
    for keep in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(ArtifactError, match="truncated.*iec.metrics.references"):
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
    assert reference.hash == "bcd7db2b70b189b96fdf5e6b48b287f5959332e4922cae887011e2b2fe6f89eb"
    assert (reference.pooled.n, reference.resolution, facts["dataset"]) == (50_000, 32, "CIFAR-10 train")
    assert reference.kid.shape == (5000, 112) and reference.kid.dtype == np.float32
    assert reference_path("cifar10_train", extractor).stat().st_size < 3e6
    assert {"images_sha256", "date", "versions", "command", "resize", "extractor"} <= set(facts)
    for statistics in (reference.pooled, reference.spatial):
        assert np.linalg.eigvalsh(statistics.cov).min() > 0
    error = np.abs(reference.kid.mean(axis=0) - reference.pooled.mean) / np.sqrt(np.diag(reference.pooled.cov) / 5000)
    assert error.max() < 5  # the subset is a fair draw of the whole


def test_the_shipped_references_of_the_grey_data_set(extractor):
    reference = load_reference(reference_path("fashion_mnist_train", extractor), extractor, resolution=32)
    facts = reference.provenance
    assert (reference.pooled.n, facts["dataset"]) == (60_000, "Fashion-MNIST train")
    assert facts["preprocess"] == "as stored; grey as stored, repeated to RGB for the extractor"
    assert reference.kid.shape == (5000, 112) and np.linalg.eigvalsh(reference.pooled.cov).min() > 0
    deep = EffNetLite0Deep.__new__(EffNetLite0Deep)  # its identity needs no network
    path = reference_path("fashion_mnist_train", deep)
    compact = load_reference(path, deep, resolution=32)
    assert (compact.pooled.n, compact.pooled.mean.shape, compact.kid) == (60_000, (1280,), None) and path.stat().st_size < 4e6
    assert compact.provenance["images_sha256"] == facts["images_sha256"]


def test_a_compact_reference_gives_the_same_distance_from_fewer_bytes(made, tmp_path):
    _, whole, extractor = made
    small = whole.compact()
    small.save(tmp_path / "small.safetensors")
    got = load_reference(tmp_path / "small.safetensors", extractor)
    assert got.hash == small.hash != whole.hash and got.kid is None and got.spatial is None
    assert np.array_equal(got.pooled.cov, small.pooled.cov) and np.array_equal(got.pooled.cov, got.pooled.cov.T)
    np.testing.assert_allclose(got.pooled.cov, whole.pooled.cov, rtol=1e-7)
    with safe_open(tmp_path / "small.safetensors", "numpy") as file:
        d = len(whole.pooled.mean)
        assert set(file.keys()) == {"pooled_mean", "pooled_cov"} and file.get_tensor("pooled_cov").shape == (d * (d + 1) // 2,)
    with pytest.raises(MetricError, match="not there"):
        dataclasses.replace(whole, pooled=None).compact()
    with pytest.raises(MetricError, match="no triangle of 4 features"):
        assemble({"pooled_mean": np.zeros(4), "pooled_cov": np.zeros(9, np.float32)}, small.provenance)


def test_parts_that_are_not_there_stay_away(made, tmp_path):
    _, whole, extractor = made
    for missing in (("spatial", "kid"), ("kid",), ("pooled",)):
        part = dataclasses.replace(whole, **dict.fromkeys(missing))
        part.save(tmp_path / "part.safetensors")
        got = load_reference(tmp_path / "part.safetensors", extractor)
        assert [getattr(got, name) is None for name in ("pooled", "spatial", "kid")] == [
            name in missing for name in ("pooled", "spatial", "kid")
        ]
        assert got.hash == part.hash != whole.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"pooled_cov": None}, "pooled_mean or pooled_cov is missing"),
        (lambda r: {"spatial_mean": None}, "spatial_mean or spatial_cov is missing"),
        (lambda r: dict.fromkeys(("pooled_mean", "pooled_cov", "spatial_mean", "spatial_cov", "kid")), "None of pooled_mean"),
        (lambda r: {"pooled_cov": r.pooled.cov * np.nan}, "NaN"),
        (lambda r: {"pooled_cov": r.pooled.cov + np.triu(np.ones((3, 3)), 1)}, "not symmetric"),
        (lambda r: {"pooled_cov": -r.pooled.cov}, "negative variance"),
        (lambda r: {"pooled_cov": np.eye(4)}, "do not fit"),
        (lambda r: {"kid": r.kid[:, :2]}, "another width"),
        (lambda r: {"kid": r.kid * np.nan}, "NaN"),
    ],
)
def test_files_that_hold_no_statistics(made, tmp_path, change, message):
    """With the right hash: made so, not damaged."""
    _, reference, extractor = made
    tensors = {**reference._tensors(), **change(reference)}

    class Made(Reference):
        def _tensors(self):
            return {name: np.ascontiguousarray(value) for name, value in tensors.items() if value is not None}

    Made(None, None, None, reference.provenance).save(tmp_path / "bad.safetensors")
    with pytest.raises(ArtifactError, match=rf"bad.safetensors holds no statistics.*{message}"):
        load_reference(tmp_path / "bad.safetensors", extractor)


def test_provenance_has_to_say_what_it_is(made, tmp_path):
    bare = dataclasses.replace(made[1], provenance={"n": 40, "extractor": {}})
    bare.save(tmp_path / "bare.safetensors")
    with pytest.raises(ArtifactError, match="does not say its resolution, extractor_hash"):
        load_reference(tmp_path / "bare.safetensors", made[2])


def test_where_references_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("IEC_REFERENCES", str(tmp_path))
    assert reference_path("cifar10_train", "efflite0").parent.name == "references"
    (tmp_path / "lsun_church_256.inception.safetensors").touch()
    assert reference_path("lsun_church_256", "inception").parent == tmp_path
    with pytest.raises(ConfigError, match="choose one of cifar10_train, fashion_mnist_train"):
        reference_path("cifar11", "inception")


@pytest.mark.parametrize("name", dataset_names())
@pytest.mark.parametrize("extractor", ["inception", "inception_pytorch_fid"])
def test_a_missing_reference_says_how_it_is_made(name, extractor, tmp_path, monkeypatch):
    monkeypatch.setenv("IEC_REFERENCES", str(tmp_path))
    with pytest.raises(ArtifactError) as caught:
        reference_path(name, extractor)
    text, protocol = str(caught.value), extractor.replace("inception_pytorch_fid", "pytorch_fid")
    assert f"{name}.{extractor}.safetensors" in text and str(tmp_path) in text
    assert f"iec.metrics.references --dataset {name} --data" in text and f"--protocol {protocol}" in text
    published = name in ("lsun_bedroom_256", "imagenet_256") and extractor == "inception"
    assert ("VIRTUAL_" in text and "https://openaipublic" in text and "not known to us" in text) == published


@pytest.fixture(scope="module")
def many():
    """Nearly 7 chunks."""
    return np.random.default_rng(0).integers(0, 256, (6 * CHUNK + 900, 8, 8, 3), dtype=np.uint8)


def make(images, output, workers=0, **options):
    return make_reference(ArraySource(images, "many"), open_tiny, output, "command", CPU, workers, **options)


def test_streamed_statistics_are_those_of_all_images_at_once(many, tmp_path):
    seen = []
    reference = make(many, tmp_path / "r.safetensors", report=lambda done, total: seen.append((done, total)))
    features = extract(many, TinyExtractor())
    for part in ("pooled", "spatial"):
        expected, got = GaussianStatistics.of(getattr(features, part)), getattr(reference, part)
        np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(got.cov, expected.cov, rtol=1e-9, atol=1e-15)
    chosen = np.sort(np.random.default_rng(0).permutation(6900)[:5000])  # as the packaged reference says
    np.testing.assert_array_equal(reference.kid, features.pooled[chosen])
    assert (reference.provenance["n"], seen[0], seen[-1]) == (6900, (0, 6900), (6900, 6900))
    assert not list(tmp_path.glob("*.partial"))
    loaded = load_reference(tmp_path / "r.safetensors", TinyExtractor(), 8)
    assert loaded.hash == reference.hash


def test_any_number_of_workers_writes_the_same_bytes(many, tmp_path):
    for workers in (1, 3):
        make(many, tmp_path / f"{workers}.safetensors", workers)
    make(many[:], tmp_path / "0.safetensors")
    assert len({(tmp_path / f"{workers}.safetensors").read_bytes() for workers in (0, 1, 3)}) == 1


def test_other_images_have_another_hash(many, tmp_path):
    changed = many.copy()
    changed[6500, 3, 3, 1] ^= 1
    hashes = {make(x, tmp_path / f"{k}").provenance["images_sha256"] for k, x in enumerate((many, changed))}
    assert len(hashes) == 2 and images_sha256(["a"]) != images_sha256(["b"])


class Killing(ArraySource):
    """Ends its process when a certain chunk is read."""

    def blocks(self, start=0, stop=None, skipped=None):
        if start == 6 * CHUNK and os.environ.get("KILL_AT_CHUNK_6"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().blocks(start, stop, skipped)


def test_killed_and_run_again_it_writes_the_same_bytes(many, tmp_path, monkeypatch):
    source, command = Killing(many, "many"), (open_tiny, tmp_path / "r.safetensors", "command", CPU, 0)
    monkeypatch.setenv("KILL_AT_CHUNK_6", "1")
    process = multiprocessing.get_context("fork").Process(target=make_reference, args=(source, *command))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors.partial"]
    monkeypatch.delenv("KILL_AT_CHUNK_6")
    seen = []
    make_reference(source, *command, report=lambda done, total: seen.append(total))
    assert set(seen) == {1900}  # five chunks were kept
    make(many, tmp_path / "whole.safetensors")
    assert (tmp_path / "r.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_rest_of_other_images_is_not_continued(many, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "SAVE_EVERY", 1)
    job = Job(ArraySource(many[:2500], "many"), open_tiny, "hash")
    gathering.gather(job, tmp_path / "p", CPU, 0, lambda done, total: None)
    for other in (
        Job(ArraySource(many[1:2501], "many"), open_tiny, "hash"),
        Job(ArraySource(many[:2500], "many"), open_tiny, "other"),
        Job(ArraySource(many[:2500], "many"), open_tiny, "hash", limit=2400),
        Job(ArraySource(many[:2500], "many"), open_tiny, "hash", skip_damaged=True),
    ):
        with pytest.raises(ArtifactError, match="other images, or of another extractor"):
            gathering.gather(other, tmp_path / "p", CPU, 0, lambda done, total: None)
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="is damaged.*Delete it"):
        gathering.gather(job, tmp_path / "p", CPU, 0, lambda done, total: None)


def test_an_existing_file_is_kept(many, tmp_path):
    first = make(many[:100], tmp_path / "r.safetensors")
    before = (tmp_path / "r.safetensors").stat().st_mtime_ns
    assert make(many[:100], tmp_path / "r.safetensors").hash == first.hash
    with pytest.raises(ArtifactError, match="was made by another command"):
        make_reference(ArraySource(many, "many"), open_tiny, tmp_path / "r.safetensors", "other", CPU, 0)
    assert (tmp_path / "r.safetensors").stat().st_mtime_ns == before


def test_limits_and_sets_without_content(many, tmp_path):
    limited = make(many, tmp_path / "a", limit=1500)
    assert limited.provenance["n"] == 1500 and len(limited.kid) == 1500 == len(kid_positions(1500))
    np.testing.assert_array_equal(limited.pooled.mean, make(many[:1500], tmp_path / "b").pooled.mean)
    for limit in (1, 6901):
        with pytest.raises(MetricError, match="choose 2 .. 6900"):
            make(many, tmp_path / "c", limit=limit)
    with pytest.raises(MetricError, match="same features"):
        make(np.full((30, 8, 8, 3), 7, np.uint8), tmp_path / "d")
    make(many[: CHUNK + 1], tmp_path / "e")  # a last chunk of one image


def test_damaged_files_are_left_out_and_recorded(many, tmp_path):
    folder = write_folder(tmp_path / "pngs", many[:30])
    for k in (4, 29):
        (folder / f"{k:04d}.png").write_bytes(b"")
    source = open_folder(folder, skip_damaged=True)
    with pytest.raises(MetricError, match="0004.png is damaged"):
        make_reference(source, open_tiny, tmp_path / "r", "command", CPU, 0)
    seen = []
    got = make_reference(
        source, open_tiny, tmp_path / "r", "command", CPU, 0, skip_damaged=True, report=lambda *at: seen.append(at)
    )
    assert got.provenance["skipped"] == ["0004.png", "0029.png"] and got.provenance["n"] == 28 and seen[-1] == (30, 30)
    expected = extract(np.delete(many[:30], [4, 29], axis=0), TinyExtractor())
    np.testing.assert_allclose(got.pooled.mean, expected.pooled.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(got.kid, expected.pooled)


def test_errors_in_workers_reach_the_caller(tmp_path):
    with pytest.raises(MetricError, match="Images must be square"):
        make(np.zeros((1500, 8, 9, 3), np.uint8), tmp_path / "r.safetensors", workers=2)


@pytest.fixture
def statistics(tiny, random_images):
    """(arrays of an ADM file, features) of 40 images."""
    features = extract(random_images, tiny())
    mu, mu_s = (x.astype(np.float64).mean(axis=0) for x in (features.pooled, features.spatial))
    sigma, sigma_s = (np.cov(x.astype(np.float64), rowvar=False) for x in (features.pooled, features.spatial))
    return {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s, "arr_0": random_images}, features


@pytest.fixture
def any_origin(monkeypatch):
    for origin in ORIGINS:
        monkeypatch.setitem(ORIGINS, origin, "tiny")


def write_npz(path, arrays, *names):
    np.savez(path, **{name: arrays[name] for name in names or arrays})
    return path


@pytest.mark.usefixtures("any_origin")
def test_importing_an_adm_file(statistics, tiny, tmp_path):
    arrays, features = statistics
    path, extractor = write_npz(tmp_path / "VIRTUAL_x.npz", arrays), tiny()
    got = import_statistics(path, extractor, n=40)
    np.testing.assert_array_equal(got.pooled.cov, arrays["sigma"])
    np.testing.assert_array_equal(got.spatial.mean, arrays["mu_s"])
    np.testing.assert_array_equal(got.kid, features.pooled)
    assert (got.resolution, got.pooled.n, got.extractor_hash) == (8, 40, extractor.hash)
    assert got.provenance["imported"]["file"] == "VIRTUAL_x.npz" and len(got.provenance["imported"]["sha256"]) == 64
    assert got.provenance["imported"]["origin"] == "guided-diffusion evaluator"
    got.save(tmp_path / "r.safetensors")
    assert load_reference(tmp_path / "r.safetensors", extractor, 8).hash == got.hash
    assert import_statistics(path, extractor, images=False).kid is None


@pytest.mark.usefixtures("any_origin")
@pytest.mark.parametrize("origin", ["pytorch_fid", "edm"])
def test_importing_mu_and_sigma(statistics, tiny, tmp_path, origin):
    arrays, features = statistics
    path = write_npz(tmp_path / "stats.npz", {**arrays, "sigma": arrays["sigma"].astype(np.float32)}, "mu", "sigma")
    got = import_statistics(path, tiny(), origin, resolution=8)
    assert got.spatial is None and got.kid is None and got.provenance["n"] is None
    got.save(tmp_path / "r.safetensors")
    loaded = load_reference(tmp_path / "r.safetensors", tiny(), 8)
    assert loaded.pooled.n == UNKNOWN_N and loaded.pooled.cov.dtype == np.float64
    mine = GaussianStatistics.of(features.pooled)
    assert frechet_distance(mine, loaded.pooled) == pytest.approx(0, abs=1e-8)


@pytest.mark.usefixtures("any_origin")
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda a: {"arr_0": a["arr_0"]}, {}, "lacks mu or sigma; it holds arr_0"),
        (lambda a: {"mu": a["mu"]}, {}, "lacks mu or sigma"),
        (lambda a: {k: a[k] for k in ("mu", "sigma", "mu_s")}, {}, "only one of mu_s and sigma_s"),
        (lambda a: {k: a[k] for k in ("mu", "sigma")}, {"resolution": 8}, "--origin pytorch_fid  or  --origin edm"),
        (lambda a: {k: a[k] for k in ("mu", "sigma")}, {"origin": "edm"}, "--resolution R"),
        (lambda a: {k: a[k] for k in ("mu", "sigma")}, {"origin": "clean", "resolution": 8}, "Unknown origin"),
        (lambda a: a, {"resolution": 16}, "8 x 8 images, not 16 x 16"),
        (lambda a: {**a, "mu": a["mu"] * np.nan}, {}, "NaN"),
        (lambda a: {**a, "sigma": a["sigma"] + np.triu(np.ones((3, 3)), 1)}, {}, "not symmetric"),
        (lambda a: {**a, "mu": np.zeros(64), "sigma": np.eye(64)}, {}, r"mu is \[64\], Tiny gives 3 features"),
        (lambda a: {**a, "mu_s": np.zeros(9), "sigma_s": np.eye(9)}, {}, r"mu_s is \[9\], Tiny gives 12"),
        (lambda a: {**a, "sigma": np.eye(4)}, {}, "do not fit"),
        (lambda a: {**a, "mu": np.array([{}], dtype=object)}, {}, "is damaged"),
    ],
)
def test_imports_that_are_refused(statistics, tiny, tmp_path, change, options, message):
    np.savez(tmp_path / "x.npz", **change(statistics[0]))
    with pytest.raises(ArtifactError, match=message):
        import_statistics(tmp_path / "x.npz", tiny(), **options)


def test_statistics_of_another_extractors_conventions_are_refused(statistics, tiny, tmp_path):
    path = write_npz(tmp_path / "x.npz", statistics[0])
    with pytest.raises(ArtifactError, match="guided-diffusion evaluator.*'inception', not 'tiny'"):
        import_statistics(path, tiny())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="truncated or no npz"):
        import_statistics(path, tiny())
