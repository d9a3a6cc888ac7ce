import hashlib
import io
from typing import ClassVar
from urllib.error import URLError

import pytest
import torch

from iec.errors import WeightsError
from iec.io import download
from iec.metrics.extractors import inception_weights as module
from iec.metrics.extractors.inception_weights import NAMES, SHA256, URL, find_weights

CONTENT = b"tensors" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub folder, no environment variables, and a web that fails the test."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in (module.VARIABLE, *download.OFFLINE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "urlopen", lambda *_, **__: pytest.fail("tried to download"))
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "hub" / "checkpoints"


class Answer(io.BytesIO):
    """What a server sends: all of it at once."""

    status = 200
    headers: ClassVar = {}


def answer(monkeypatch, content):
    calls = []

    def urlopen(request, timeout):
        calls.append(request.full_url)
        if isinstance(content, Exception):
            raise content
        return Answer(content)

    monkeypatch.setattr(download, "urlopen", urlopen)
    return calls


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_either_name_is_found_in_every_place(hub, tmp_path, monkeypatch, name):
    held = put(tmp_path / "mine" / name)
    assert find_weights(held, DIGEST) == find_weights(held.parent, DIGEST) == held
    monkeypatch.setenv(module.VARIABLE, str(held.parent))
    assert find_weights(digest=DIGEST) == held
    monkeypatch.delenv(module.VARIABLE)
    held = put(hub / name)
    assert find_weights(digest=DIGEST) == held


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "IEC_OFFLINE"])
def test_offline_says_what_where_from_where_to_and_which_hash(hub, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(WeightsError) as caught:
        find_weights()
    for part in (variable, *NAMES, URL, SHA256, str(hub), module.VARIABLE):
        assert part in str(caught.value)


def test_a_named_file_that_is_missing_is_not_replaced_by_another(hub, tmp_path, monkeypatch):
    put(hub / NAMES[0])
    monkeypatch.setenv(module.VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match=r"(?s)none.pth is not a file.*curl -L"):
        find_weights(digest=DIGEST)


def test_another_file_under_the_name_is_refused(hub):
    path = put(hub / NAMES[1], CONTENT[:-1])
    with pytest.raises(WeightsError, match=f"{path} is damaged or another network"):
        find_weights(digest=DIGEST)


def test_a_download_is_complete_or_absent(hub, monkeypatch):
    for content, message in [(CONTENT[:-1], "expected"), (URLError("no route"), "could not be fetched .*no route")]:
        answer(monkeypatch, content)
        with pytest.raises(WeightsError, match=f"(?s){message}.*curl -L.*{module.VARIABLE}=FILE"):
            find_weights(digest=DIGEST)
        assert not list(hub.iterdir())
    calls = answer(monkeypatch, CONTENT)
    path = find_weights(digest=DIGEST)
    assert path == hub / NAMES[0] and path.read_bytes() == CONTENT and calls == [URL]
    assert find_weights(digest=DIGEST) == path and len(calls) == 1
    assert [p.name for p in hub.iterdir()] == [NAMES[0]]
