import hashlib

import pytest
import torch

from iec.errors import WeightsError
from iec.metrics.extractors.local_weights import VARIABLE, WeightsFile

CONTENT = b"tensors" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "hub/checkpoints"


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("digest", ["", DIGEST[:8], DIGEST])
def test_a_file_is_found_under_either_name_in_either_folder_and_where_it_is_told_to_be_put(hub, tmp_path, monkeypatch, digest):
    weights = WeightsFile(("a.pth", "b.pth"), "https://example.org/a.pth", digest)
    with pytest.raises(WeightsError) as error:
        weights.find()
    assert f"a.pth is not in {hub}. It is not fetched" in str(error.value)
    assert f"curl -L --create-dirs -o {hub / 'a.pth'} https://example.org/a.pth\n" in str(error.value)
    known = {0: "its SHA-256 is not published", 8: f"whose SHA-256 begins with {DIGEST[:8]}", 64: f"SHA-256 {DIGEST}"}
    assert f"({known[len(digest)]})" in str(error.value) and f"set {VARIABLE}=FOLDER" in str(error.value)
    put(hub / "b.pth")
    assert weights.find() == (hub / "b.pth", DIGEST)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert weights.find() == (hub / "b.pth", DIGEST)
    assert put(tmp_path / "mine/a.pth") == weights.find()[0]


def test_another_file_of_the_name_is_refused(hub, monkeypatch, tmp_path):
    weights = WeightsFile(("a.pth",), "https://example.org/a.pth", "0" * 64)
    put(hub / "a.pth")
    with pytest.raises(
        WeightsError, match=f"is damaged or another file: its SHA-256 is {DIGEST[:12]}... . Delete it.(.|\n)*curl -L"
    ):
        weights.find()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "empty"))
    (hub / "a.pth").unlink()
    with pytest.raises(WeightsError, match=f"is neither in {tmp_path / 'empty'} nor in {hub}"):
        weights.find()
