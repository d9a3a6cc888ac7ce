import errno
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from iec.errors import StoreError
from iec.io import files
from iec.io.files import sha256, write_atomic
from iec.io.records import read_record
from iec.runs.batches import Samples, micro_batches
from iec.runs.cell_images import CellSource
from iec.runs.failures import FAILED, read_failure
from iec.runs.records import MANIFEST, PREPARED, Manifest
from iec.runs.runner import ENVIRONMENT, Result
from iec.runs.store import Store
from iec.sampling.network import Calls

BATCHES = micro_batches(10, 4)


def samples(indices, trace=0):
    images = np.stack([np.full((4, 4, 3), n, np.uint8) for n in indices])
    return Samples(images, np.zeros((3, trace, 3, 4, 4), np.float32), Calls(full=2 * len(indices), correction=len(indices)), 1.0)


def filled(folder, num_images=10):
    store = Store.open(folder, {"cell": 1})
    for indices in micro_batches(num_images, 4):
        store.write(indices, samples(indices, 2 if indices[0] == 0 else 0), min(4, num_images - indices[0]), "test")
    return store


def test_the_grid_of_micro_batches_is_whole_and_fixed():
    assert BATCHES == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]


def test_round_trip_and_totals(tmp_path):
    store = filled(tmp_path / "cell")
    assert all(store.is_finished(b, min(4, 10 - b[0]), 0) for b in BATCHES)
    images = np.concatenate(list(store.read_images(BATCHES, 10)))
    assert images[:, 0, 0, 0].tolist() == list(range(10))
    assert store.read_states(BATCHES, 2).shape == (3, 2, 3, 4, 4)
    manifest = store.write_manifest(BATCHES, 10)
    assert manifest.calls_per_image == {"full": 2.0, "cached": 0.0, "correction": 1.0, "cached_correction": 0, "total": 3.0}
    with np.load(store.shard(BATCHES[2])) as shard:
        assert shard["indices"].tolist() == [8, 9] and shard["images"].dtype == np.uint8


def test_the_same_images_are_the_same_bytes_and_the_same_manifest_hash(tmp_path):
    a, b = filled(tmp_path / "a"), filled(tmp_path / "b", 12)
    assert a.shard(BATCHES[0]).read_bytes() == b.shard(BATCHES[0]).read_bytes()
    assert a.write_manifest(BATCHES, 10).hash == b.write_manifest(BATCHES, 10).hash
    assert a.write_manifest(BATCHES, 10).hash != b.write_manifest(BATCHES, 12).hash


def test_more_images_or_trajectories_than_kept_are_not_finished(tmp_path):
    store = filled(tmp_path / "cell")
    assert not store.is_finished(BATCHES[2], 3, 0)
    assert not store.is_finished(BATCHES[0], 4, 3)


def test_a_request_of_less_loses_nothing(tmp_path):
    store = filled(tmp_path / "cell")
    store.shard(BATCHES[0]).unlink()
    store.write(BATCHES[0], samples(BATCHES[0]), 1, "test")
    assert store.kept(BATCHES[0]) == (4, 0) and store.is_finished(BATCHES[0], 4, 0)
    assert store.kept((40, 41)) == (0, 0)


def test_the_images_of_a_folder_are_those_of_its_manifest(tmp_path):
    """Neither more, where a smaller cell was asked for after a larger one, nor a mixture, where it is being extended."""
    store = filled(tmp_path / "cell", 12)
    store.write_manifest(BATCHES, 12)
    store.write_manifest(BATCHES[:2], 6)
    source = CellSource.open(store.folder)
    assert len(source) == 6 == sum(map(len, source.blocks()))
    store.write((8, 9, 10, 11), samples((8, 9, 10, 11)), 4, "test")
    assert len(CellSource.open(store.folder)) == 6
    fewer = filled(tmp_path / "fewer")
    fewer.write_manifest(BATCHES, 10)
    fewer.write(BATCHES[2], samples(BATCHES[2]), 4, "test")  # begun again for 12
    with pytest.raises(StoreError, match=r"image 8 is missing, or newer than manifest\.json. Run the cell again"):
        CellSource.open(fewer.folder)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "commit", "trace"])
def test_a_damaged_shard_is_found(tmp_path, damage):
    store = filled(tmp_path / "cell")
    path = store.shard(BATCHES[0])
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "remove":
        path.unlink()
    elif damage == "commit":
        path.with_suffix(".json").write_text("{")
    else:
        store.trace(BATCHES[0]).write_bytes(b"")
    assert not store.is_finished(BATCHES[0], 4, 0)
    assert store.is_finished(BATCHES[1], 4, 0)


SHAPES = ["{}", "[]", "null", "1", '{"count": 4, "sha256": "", "trace": 0}', "{broken"]


@pytest.mark.parametrize("text", [*SHAPES, "types"])
def test_a_shard_whose_commit_record_has_another_shape_is_made_again(tmp_path, text):
    store = filled(tmp_path / "cell")
    record = store.shard(BATCHES[0]).with_suffix(".json")
    whole = record.read_bytes()
    record.write_text(json.dumps({**json.loads(whole), "count": "4"}) if text == "types" else text)
    assert not store.is_finished(BATCHES[0], 4, 0)
    with pytest.raises(StoreError, match="made again"):
        store.manifest(BATCHES, 10)
    store.write(BATCHES[0], samples(BATCHES[0], 2), 4, "test")
    assert store.is_finished(BATCHES[0], 4, 2) and record.read_bytes() == whole


@pytest.mark.parametrize("text", SHAPES)
def test_other_files_of_another_shape_are_as_if_they_were_missing(tmp_path, text):
    store = filled(tmp_path / "cell")
    for name in (FAILED, PREPARED, ENVIRONMENT, MANIFEST):
        (store.folder / name).write_text(text)
    assert read_failure(store.folder) is None
    result = Result(SimpleNamespace(folder=store.folder), store, store.manifest(BATCHES, 10))
    assert result.cost is None and result.environment is None
    with pytest.raises(StoreError, match=r"no usable manifest\.json. Run the cell again"):
        CellSource.open(store.folder)
    store.write_manifest(BATCHES, 10)
    assert len(CellSource.open(store.folder)) == 10
    (store.folder / "cell.json").write_text(text)
    with pytest.raises(StoreError, match=r"paths\.cell"):
        Store.open(store.folder, {"cell": 1})


def test_a_manifest_is_written_as_it_always_was(tmp_path):
    """Byte for byte: keys, order, indent; machines as a list."""
    store = filled(tmp_path / "cell")
    manifest = store.write_manifest(BATCHES, 10)
    shards = {store.shard(batch).name: sha256(store.shard(batch)) for batch in BATCHES}
    calls = {"cached": 0.0, "cached_correction": 0.0, "correction": 1.0, "full": 2.0, "total": 3.0}
    totals = {"hash": manifest.hash, "machines": ["test"], "num_images": 10, "seconds_per_image": 0.25, "shards": shards}
    expected = json.dumps({"calls_per_image": calls, **totals}, indent=1) + "\n"
    assert (store.folder / MANIFEST).read_text() == expected
    assert read_record(store.folder / MANIFEST, Manifest) == manifest


def test_a_folder_of_another_cell_is_refused(tmp_path):
    filled(tmp_path / "cell")
    with pytest.raises(StoreError, match=r"differ in cell.*paths\.cell"):
        Store.open(tmp_path / "cell", {"cell": 2})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(StoreError, match="holds no usable cell.json"):
        Store.open(tmp_path / "photos", {"cell": 1})


def test_an_unwritable_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"paths\.output"):
        Store.open(tmp_path / "file" / "cell", {"cell": 1})


def test_a_full_disk_leaves_finished_shards_intact(tmp_path, monkeypatch):
    store = filled(tmp_path / "cell")
    before = {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left.*intact"):
        store.write(BATCHES[1], samples(BATCHES[1]), 4, "test")
    assert {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()} == before


def test_stale_temporaries_are_cleared_and_young_ones_left(tmp_path):
    store = filled(tmp_path / "cell")
    old, young = store.folder / "shards" / ".x.npz.1.tmp", store.folder / "shards" / ".y.npz.2.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    Store.open(store.folder, {"cell": 1})
    assert not old.exists() and young.exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupted(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, interrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"old"
