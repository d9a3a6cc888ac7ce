"""From a cell's images to its record, with a toy protocol."""

import dataclasses
import json
import logging
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

import iec.runs.features
import iec.runs.metrics
from iec.errors import ArtifactError, ConfigError, MetricError
from iec.metrics.extractors.features import extract, extract_each
from iec.metrics.frechet import GaussianStatistics
from iec.metrics.metric import Rules
from iec.metrics.protocol import Protocol
from iec.metrics.record import Record
from iec.metrics.references.reference import Reference
from iec.models.prompts import prompts_of
from iec.runs import scoring as module
from iec.runs.metrics import Metrics
from iec.runs.parallel import Split
from iec.runs.records import Manifest
from iec.runs.scoring import Scorer, stored_record, stored_records

pytestmark = pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")


class Folder:
    """A store of 40 images that hands them out in shards."""

    def __init__(self, folder, images, shard):
        self.folder, self.images, self.shard = folder, images, shard

    def read_images(self, batches, num_images):
        for start in range(0, num_images, self.shard):
            yield self.images[start : min(start + self.shard, num_images)]


@pytest.fixture
def setting(tiny, random_images, tmp_path, monkeypatch):
    """(make a cell, reference, images); the toy protocol is 'toy', and nothing stands beside it."""
    extractor = tiny()
    real = extract(random_images, extractor)
    statistics = GaussianStatistics.of(real.pooled), GaussianStatistics.of(real.spatial)
    facts = {"n": 40, "resolution": 8, "extractor": extractor.identity, "extractor_hash": extractor.hash}
    reference = Reference(*statistics, real.pooled, facts)
    toy = Protocol(
        "toy", "Toy", lambda device: tiny(), ("fid", "is", "precision"), ("kid", "sfid", "fid_inf"), Rules("adm", linear=True)
    )
    for user in (module, iec.runs.metrics):
        monkeypatch.setattr(user, "protocol", lambda name: toy)
    monkeypatch.setattr(module, "reference_path", lambda dataset, extractor: tmp_path / "toy.safetensors")
    reference.save(tmp_path / "toy.safetensors")

    def cell(bootstrap=10, scores=None, name="cell", clip=None, beside=None, protocol="toy"):
        return SimpleNamespace(
            metrics=Metrics(protocol, scores, clip, bootstrap, beside),
            device=torch.device("cpu"),
            split=Split(("cpu",), processes=1, threads=1),
            card=SimpleNamespace(reference="toy", resolution=8, components={"unet": None}),
            num_images=40,
            seed=3,
            batches=[],
            folder=tmp_path / name,
            model=SimpleNamespace(prompts=None),
        )

    return cell, reference, (random_images * 0.8).astype(np.uint8)


@pytest.fixture
def extractions(monkeypatch):
    """How often features were extracted: one entry each time."""
    found = []

    def counted(*arguments):
        found.append(extract_each(*arguments))
        return found[-1]

    monkeypatch.setattr(iec.runs.features, "extract_each", counted)
    return found


def manifest(hash, num_images=40):
    return Manifest(num_images, {}, hash, {}, 1.0, ())


MANIFEST = manifest("abc")


def score(cell, store, about=MANIFEST):
    """The record of the cell's protocol."""
    return Scorer.open(cell).score(cell, store, about)[0]


def stored(cell, about=MANIFEST):
    return stored_record(cell, about, "toy")


def test_the_clip_score_pairs_image_n_with_prompt_n(setting, monkeypatch):
    make, _, images = setting
    asked = []

    class Counting:
        identity: ClassVar = {"network": "toy", "weights_sha256": "1"}
        label = "CLIP score (toy)"

        def per_image(self, images, captions):
            images = np.concatenate(list(images))
            asked.append((images, captions))
            return np.arange(len(images), dtype=np.float64)

    monkeypatch.setattr(module, "CLIPScorer", lambda backbone, device: Counting())
    cell = make(clip="toy")
    cell.folder.mkdir()
    store = Folder(cell.folder, images, 7)
    record = score(cell, store)
    ((scored, captions),) = asked
    assert np.array_equal(scored, images) and captions == [prompts_of().of(n) for n in range(40)]
    assert record.scores["clip"].value == 19.5 and record.clip == Counting.identity
    assert score(cell, store) == record and len(asked) == 1  # from disk
    Counting.identity = {"network": "toy", "weights_sha256": "2"}
    assert score(cell, store).clip == Counting.identity and len(asked) == 2
    assert stored(make()) is None


def test_a_record_holds_all_that_the_scores_depend_on(setting, tmp_path):
    make, reference, images = setting
    cell = make()
    cell.folder.mkdir()
    record = score(cell, Folder(cell.folder, images, 7))
    assert list(record.scores) == ["fid", "is", "precision"] and record.scores["fid"].interval == "linear"
    assert [score.label for score in record.scores.values()] == ["FID (Toy)", "IS (Toy)", "precision (Toy)"]
    assert (record.protocol, record.n, record.seed, record.manifest_hash) == ("toy", 40, 3, "abc")
    assert record.reference_hash == reference.hash and record.extractor_hash == reference.extractor_hash
    assert record.real_features == 40
    assert record.rules == {"chunks": "adm", "kid_subsets": 0, "linear": True}
    assert (record.inception_splits, record.inception_shuffle_seed, record.dtype) == (1, None, "float32")
    assert record.resize == "8 -> 8: none" and {"torch", "numpy", "torch-fidelity"} <= set(record.versions)
    assert json.loads((cell.folder / "scores.json").read_text())["n"] == 40


def test_the_same_digits_whatever_the_shards(setting):
    make, _, images = setting
    records = []
    for shard in (1, 7, 16, 40):
        cell = make(name=f"cell{shard}")
        cell.folder.mkdir()
        records.append(score(cell, Folder(cell.folder, images, shard)))
    assert all(record.scores == records[0].scores for record in records)


def test_features_are_kept_and_the_record_is_about_what_is_asked(setting, extractions):
    make, _, images = setting
    cell = make()
    cell.folder.mkdir()
    store = Folder(cell.folder, images, 7)
    first = score(cell, store)
    assert stored(cell) == first == score(cell, store)
    for other in (make(bootstrap=11), make(scores=("fid",)), make(scores=("fid", "is", "precision"))):
        assert stored(other) is None
    assert stored(cell, manifest("other")) is None
    asked = make(scores=("kid", "sfid"))
    record = score(asked, store)
    assert list(record.scores) == ["kid", "sfid"] and stored(asked) == record
    assert len(extractions) == 1
    store.images = images[::-1]
    score(cell, store, manifest("other"))
    assert len(extractions) == 2


def test_tables_that_want_different_numbers_of_images_do_not_undo_each_other(setting, extractions):
    """Scores of fewer images come from the features of the first ones, and the record of the more stays."""
    make, _, images = setting
    cell, fewer = make(), make()
    fewer.num_images = 24
    cell.folder.mkdir()
    store, half = Folder(cell.folder, images, 7), manifest("half", 24)
    whole = score(cell, store)
    part = score(fewer, store, half)
    assert len(extractions) == 1 and part.n == 24 and part.scores != whole.scores
    assert stored(cell) == whole and stored(fewer, half) == part
    assert stored(fewer, manifest("other", 24)) is None
    (cell.folder / "features" / "tiny.npz").unlink()
    score(fewer, store, manifest("half, anew", 24))
    assert score(cell, store, manifest("abc, anew")).scores == whole.scores
    assert len(extractions) == 3


def test_damaged_features_are_computed_again(setting, extractions):
    make, _, images = setting
    cell = make()
    cell.folder.mkdir()
    store, kept = Folder(cell.folder, images, 7), cell.folder / "features" / "tiny.npz"
    first = score(cell, store)
    whole = kept.read_bytes()
    for damaged in (whole[:-100], whole[:200], b"", b"x" * 300):
        kept.write_bytes(damaged)
        for record in cell.folder.rglob("*.json"):
            record.unlink()
        assert score(cell, store).scores == first.scores
    assert len(extractions) == 5 and kept.read_bytes() == whole


def test_refusals_come_before_any_image(setting, tmp_path, caplog):
    make, reference, _images = setting
    with pytest.raises(ConfigError, match="toy has no score 'recall'"):
        Scorer.open(make(scores=("fid", "recall")))
    dataclasses.replace(reference, kid=None).save(tmp_path / "toy.safetensors")
    with pytest.raises(MetricError, match="its part 'kid'"):
        Scorer.open(make(scores=("precision",)))
    reference.save(tmp_path / "toy.safetensors")
    few = make(scores=("fid_inf",))
    few.num_images = 39
    with pytest.raises(MetricError, match="39 images are too few for fid_inf, which needs 40"):
        Scorer.open(few)
    dataclasses.replace(reference, kid=None).save(tmp_path / "toy.safetensors")
    caplog.set_level(logging.WARNING)
    assert Scorer.open(make()).evaluations[0].names == ("fid", "is") and "no parts for precision" in caplog.text
    cell = make()
    cell.card.components = {"text_encoder": None}
    caplog.clear()
    Scorer.open(cell)
    assert "model.prompts is not set: images of the package's own prompts are compared with toy" in caplog.text
    cell.card.resolution = 16
    with pytest.raises(ArtifactError, match="8 x 8 images, not 16 x 16"):
        Scorer.open(cell)


@pytest.mark.parametrize(("held", "listed"), [(39, 40), (40, 39)])
def test_another_number_of_images_than_asked_for(setting, held, listed):
    make, _, images = setting
    cell = make()
    cell.folder.mkdir()
    store = Folder(cell.folder, images[:held], 7)
    with pytest.raises(MetricError, match=f"{held} images were scored, 40 were asked for and {listed} are listed"):
        score(cell, store, manifest("abc", listed))
    assert not (cell.folder / "scores.json").exists()


def test_a_record_needs_the_references_extractor(setting, tiny):
    _, reference, images = setting
    scores = Protocol("toy", "Toy", lambda device: tiny(), ("fid",)).score(extract(images, tiny()), reference, bootstrap=0)
    with pytest.raises(ArtifactError, match="extractor is not the reference's"):
        Record.of("toy", scores, 0, "abc", reference, tiny(version=2))


def test_records_from_before_the_protocols_are_read(setting, tmp_path):
    make, _, images = setting
    cell = make()
    cell.folder.mkdir()
    score(cell, Folder(cell.folder, images, 7))
    values = json.loads((cell.folder / "scores.json").read_text())
    for name in ("rules", "requested"):
        del values[name]
    for value in values["scores"].values():
        del value["interval"]
    (cell.folder / "scores.json").write_text(json.dumps(values))
    (cell.folder / "scores" / "toy" / "40.json").unlink()
    record = stored(cell)
    assert record.requested is None and record.rules["chunks"] == "shuffled"


@pytest.fixture
def two(setting, tiny, tmp_path, monkeypatch):
    """(make a cell, a store, batches that the network saw): 'deep' stands beside 'toy', and both look at one network."""
    make, reference, images = setting
    seen = []

    class Shallow(tiny):
        source = "one network"

        def outputs(self, images):
            seen.append(len(images))
            return tiny.__call__(self, images)

        def view(self, outputs):
            return outputs

        def __call__(self, images):
            return self.view(self.outputs(images))

    class Deep(Shallow):
        name = "tiny_deep"

        def __init__(self):
            super().__init__(version=2)

        def view(self, outputs):
            pooled, spatial, logits = outputs
            return np.concatenate([pooled, spatial], axis=1), spatial, logits

    protocols = {
        "toy": Protocol("toy", "Toy", lambda device: Shallow(), ("fid", "is"), ("kid",), beside=("deep",)),
        "deep": Protocol("deep", "Toy head", lambda device: Deep(), ("fid",)),
    }
    real = extract(np.random.default_rng(1).integers(0, 256, (60, 8, 8, 3), np.uint8), Deep())
    facts = reference.provenance | {"extractor": Deep().identity, "extractor_hash": Deep().hash}
    Reference(GaussianStatistics.of(real.pooled), None, None, facts).save(tmp_path / "tiny_deep.safetensors")
    (tmp_path / "toy.safetensors").rename(tmp_path / "tiny.safetensors")

    def path(dataset, extractor):
        if not (file := tmp_path / f"{extractor.name}.safetensors").is_file():
            raise ArtifactError(f"{file.name} is made by a command")
        return file

    monkeypatch.setattr(module, "reference_path", path)
    for user in (module, iec.runs.metrics, iec.runs.features):
        monkeypatch.setattr(user, "protocol", protocols.__getitem__)
    (tmp_path / "cell").mkdir()
    seen.clear()
    return make, Folder(tmp_path / "cell", images, 7), seen


BATCHES = [7] * 5 + [5]


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_protocols_cost_one_pass_and_score_what_each_scores_alone(two, tmp_path):
    make, store, seen = two
    records = Scorer.open(make()).score(make(), store, MANIFEST)
    assert [record.protocol for record in records] == ["toy", "deep"] and seen == BATCHES
    assert {"scores.json", "scores/toy/40.json", "scores/deep/40.json"} < files(store.folder).keys()
    assert stored_records(make(), MANIFEST) == records
    for record in records:
        alone = make(name=record.protocol, beside=(), protocol=record.protocol)
        alone.folder.mkdir()
        (own,) = Scorer.open(alone).score(alone, Folder(alone.folder, store.images, 7), MANIFEST)
        assert own == record
    assert seen == 3 * BATCHES
    assert Scorer.open(make()).score(make(), store, MANIFEST) == records and seen == 3 * BATCHES  # from disk


def test_a_protocol_beside_is_stored_as_the_cells_own_would_be(two):
    """The cell of the other protocol finds its record, and does not touch that of this one."""
    make, store, seen = two
    records = Scorer.open(make()).score(make(), store, MANIFEST)
    other = make(protocol="deep", beside=("toy",))
    assert stored_records(other, MANIFEST) == Scorer.open(other).score(other, store, MANIFEST) == records[::-1]
    assert seen == BATCHES


def test_a_cell_scored_before_there_were_protocols_beside_gets_the_second_score(two):
    make, store, seen = two
    alone = make(beside=())
    (first,) = Scorer.open(alone).score(alone, store, MANIFEST)
    (store.folder / "features" / "tiny.npz").rename(store.folder / "features.npz")  # as such a cell is on disk
    (store.folder / "scores" / "toy" / "40.json").rename(store.folder / "scores" / "40.json")
    (store.folder / "scores.json").unlink()
    before = files(store.folder)
    assert stored_records(make(), MANIFEST) == (first,)  # what is there is read, and can be shown
    seen.clear()
    records = Scorer.open(make()).score(make(), store, MANIFEST)
    assert records[0] == first and records[1].protocol == "deep" and seen == BATCHES
    after = files(store.folder)
    assert after.keys() - before.keys() == {"features/tiny_deep.npz", "scores/deep/40.json"} and before.items() <= after.items()
    more = make(scores=("kid",))
    assert list(score(more, store).scores) == ["kid"] and seen == BATCHES  # from the old file of features
    (store.folder / "scores" / "deep" / "40.json").unlink()  # as after a kill in between
    assert Scorer.open(make()).score(make(), store, MANIFEST)[1] == records[1] and seen == BATCHES


def test_a_protocol_beside_that_has_no_reference_is_left_out_unless_it_was_asked_for(two, tmp_path, caplog):
    make, store, _ = two
    (tmp_path / "tiny_deep.safetensors").unlink()
    (record,) = Scorer.open(make()).score(make(), store, MANIFEST)
    assert record.protocol == "toy" and "no scores of deep. tiny_deep.safetensors is made by a command" in caplog.text
    with pytest.raises(ArtifactError, match="is made by a command"):
        Scorer.open(make(beside=("deep",)))
    (tmp_path / "tiny_deep.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="truncated or not a reference"):
        Scorer.open(make())
