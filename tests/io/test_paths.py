"""Paths that users give: an output that cannot be written is known before anything is computed for it, and ~ is their home."""

from pathlib import Path

import pytest

from iec.errors import StoreError
from iec.io.paths import require_writable, user_path


def test_places_that_can_be_written_stay_as_they_are(tmp_path):
    (tmp_path / "old.json").write_text("old")
    for name in ("new.json", "old.json", "a/b/c/new.json"):
        require_writable(tmp_path / name, "--json OUT")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


@pytest.mark.parametrize("name", ["folder", "file/x.json", "file/sub/x.json", "dangling/x.json", "n" * 250, "/proc/x.json"])
def test_places_that_cannot_be_written_are_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="Choose another path: --json OUT."):
        require_writable(tmp_path / name, "--json OUT")


def test_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/out.json") == tmp_path / "out.json" and user_path("a/~b") == Path("a/~b")
