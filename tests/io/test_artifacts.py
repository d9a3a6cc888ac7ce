"""Artefacts that many processes need: one makes each, the others wait and load it."""

import errno
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from iec.errors import ArtifactError, StoreError
from iec.io import locks
from iec.io.artifacts import artifact_path, cached

FORK = multiprocessing.get_context("fork")
FINGERPRINT = {"model": "tiny", "steps": (3, 1)}


@pytest.fixture
def quick(monkeypatch):
    """Those who wait look often."""
    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: time.sleep(0.02)))


def make(folder):
    """Every making is noted."""
    with (folder / "makings").open("a") as file:
        file.write("made\n")
    time.sleep(0.05)  # the others come meanwhile
    return {"x": torch.arange(3.0)}


def get(folder):
    path = artifact_path(folder / "artifacts", "test", FINGERPRINT)
    assert cached(path, "test", FINGERPRINT, lambda: make(folder))["x"].tolist() == [0, 1, 2]


@pytest.mark.usefixtures("quick", "one_thread")
def test_of_many_processes_one_makes_it_and_all_load_it(tmp_path):
    processes = [FORK.Process(target=get, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "makings").read_text() == "made\n"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [artifact_path(tmp_path, "test", FINGERPRINT).name]


def refuse(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_read_only_folder_gives_what_it_has_and_takes_nothing_new(tmp_path, monkeypatch):
    get(tmp_path)
    monkeypatch.setattr(locks.os, "open", refuse)
    get(tmp_path)
    other = {**FINGERPRINT, "model": "other"}
    with pytest.raises(StoreError, match="Read-only"):
        cached(artifact_path(tmp_path / "artifacts", "test", other), "test", other, lambda: make(tmp_path))
    assert (tmp_path / "makings").read_text() == "made\n"  # refused before the work


def test_nothing_is_left_of_a_making_that_failed(tmp_path):
    path = artifact_path(tmp_path, "test", FINGERPRINT)

    def fail():
        assert path.with_suffix(".lock").exists()
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        cached(path, "test", FINGERPRINT, fail)
    assert not list(tmp_path.iterdir())


def test_an_artefact_of_something_else_is_refused_and_kept(tmp_path):
    path = artifact_path(tmp_path, "test", FINGERPRINT)
    cached(path, "test", FINGERPRINT, lambda: {"x": torch.zeros(1)})
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"steps\[1\]: stored 1, expected 2"):
        cached(path, "test", {**FINGERPRINT, "steps": [3, 2]}, lambda: pytest.fail("made"))
    assert path.read_bytes() == before


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = artifact_path(Path("~/artifacts"), "test", FINGERPRINT)
    assert path.parent == tmp_path / "artifacts"
