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
from iec.errors import ArtifactError, ConfigError, MetricError
from iec.metrics.extractors.features import extract
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
from iec.runs.scoring import Scorer, stored_record

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
    """(make a cell, reference, images); the toy protocol is 'toy'."""
    extractor = tiny()
    real = extract(random_images, extractor)
    statistics = GaussianStatistics.of(real.pooled), GaussianStatistics.of(real.spatial)
    facts = {"n": 40, "resolution": 8, "extractor": extractor.identity, "extractor_hash": extractor.hash}
    reference = Reference(*statistics, real.pooled, facts)
    toy = Protocol(
        "toy", "Toy", lambda device: tiny(), ("fid", "is", "precision"), ("kid", "sfid", "fid_inf"), Rules("adm", linear=True)
    )
    monkeypatch.setattr(module, "protocol", lambda name: toy)
    monkeypatch.setattr(module, "reference_path", lambda dataset, extractor: tmp_path / "toy.safetensors")
    reference.save(tmp_path / "toy.safetensors")

    def cell(bootstrap=10, scores=None, name="cell", clip=None):
        return SimpleNamespace(
            metrics=Metrics("toy", scores, clip, bootstrap),
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
        found.append(extract(*arguments))
        return found[-1]

    monkeypatch.setattr(iec.runs.features, "extract", counted)
    return found


def manifest(hash, num_images=40):
    return Manifest(num_images, {}, hash, {}, 1.0, ())


MANIFEST = manifest("abc")


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
    record = Scorer.open(cell).score(cell, store, MANIFEST)
    ((scored, captions),) = asked
    assert np.array_equal(scored, images) and captions == [prompts_of().of(n) for n in range(40)]
    assert record.scores["clip"].value == 19.5 and record.clip == Counting.identity
    assert Scorer.open(cell).score(cell, store, MANIFEST) == record and len(asked) == 1  # from disk
    Counting.identity = {"network": "toy", "weights_sha256": "2"}
    assert Scorer.open(cell).score(cell, store, MANIFEST).clip == Counting.identity and len(asked) == 2
    assert stored_record(make(), MANIFEST) is None


def test_a_record_holds_all_that_the_scores_depend_on(setting, tmp_path):
    make, reference, images = setting
    cell = make()
    cell.folder.mkdir()
    record = Scorer.open(cell).score(cell, Folder(cell.folder, images, 7), MANIFEST)
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
        records.append(Scorer.open(cell).score(cell, Folder(cell.folder, images, shard), MANIFEST))
    assert all(record.scores == records[0].scores for record in records)


def test_features_are_kept_and_the_record_is_about_what_is_asked(setting, extractions):
    make, _, images = setting
    cell = make()
    cell.folder.mkdir()
    store = Folder(cell.folder, images, 7)
    first = Scorer.open(cell).score(cell, store, MANIFEST)
    assert stored_record(cell, MANIFEST) == first == Scorer.open(cell).score(cell, store, MANIFEST)
    for other in (make(bootstrap=11), make(scores=("fid",)), make(scores=("fid", "is", "precision"))):
        assert stored_record(other, MANIFEST) is None
    assert stored_record(cell, manifest("other")) is None
    asked = make(scores=("kid", "sfid"))
    record = Scorer.open(asked).score(asked, store, MANIFEST)
    assert list(record.scores) == ["kid", "sfid"] and stored_record(asked, MANIFEST) == record
    assert len(extractions) == 1
    store.images = images[::-1]
    Scorer.open(cell).score(cell, store, manifest("other"))
    assert len(extractions) == 2


def test_tables_that_want_different_numbers_of_images_do_not_undo_each_other(setting, extractions):
    """Scores of fewer images come from the features of the first ones, and the record of the more stays."""
    make, _, images = setting
    cell, fewer = make(), make()
    fewer.num_images = 24
    cell.folder.mkdir()
    store, half = Folder(cell.folder, images, 7), manifest("half", 24)
    whole = Scorer.open(cell).score(cell, store, MANIFEST)
    part = Scorer.open(fewer).score(fewer, store, half)
    assert len(extractions) == 1 and part.n == 24 and part.scores != whole.scores
    assert stored_record(cell, MANIFEST) == whole and stored_record(fewer, half) == part
    assert stored_record(fewer, manifest("other", 24)) is None
    (cell.folder / "features.npz").unlink()
    Scorer.open(fewer).score(fewer, store, manifest("half, anew", 24))
    assert Scorer.open(cell).score(cell, store, manifest("abc, anew")).scores == whole.scores
    assert len(extractions) == 3


def test_damaged_features_are_computed_again(setting, extractions):
    make, _, images = setting
    cell = make()
    cell.folder.mkdir()
    store, kept = Folder(cell.folder, images, 7), cell.folder / "features.npz"
    first = Scorer.open(cell).score(cell, store, MANIFEST)
    whole = kept.read_bytes()
    for damaged in (whole[:-100], whole[:200], b"", b"x" * 300):
        kept.write_bytes(damaged)
        for record in cell.folder.rglob("*.json"):
            record.unlink()
        assert Scorer.open(cell).score(cell, store, MANIFEST).scores == first.scores
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
    assert Scorer.open(make()).names == ("fid", "is") and "no parts for precision" in caplog.text
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
        Scorer.open(cell).score(cell, store, manifest("abc", listed))
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
    Scorer.open(cell).score(cell, Folder(cell.folder, images, 7), MANIFEST)
    values = json.loads((cell.folder / "scores.json").read_text())
    for name in ("rules", "requested"):
        del values[name]
    for score in values["scores"].values():
        del score["interval"]
    (cell.folder / "scores.json").write_text(json.dumps(values))
    (cell.folder / "scores" / "40.json").unlink()
    record = stored_record(cell, MANIFEST)
    assert record.requested is None and record.rules["chunks"] == "shuffled"
