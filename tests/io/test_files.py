"""Folders that a command is given for its output."""

import os

import pytest

from iec.errors import StoreError
from iec.io.files import require_folder, write_atomic


def test_folders_that_are_there_or_can_be_made_are_usable(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "new" / "newer", tmp_path / "link", tmp_path / "link" / "new"):
        require_folder(path, "paths.output")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "is not a folder"), ("file/below", "is not a folder"), ("gone", "link to nothing"), ("gone/a", "link to nothing")],
)
def test_folders_that_cannot_be_made_are_refused_with_the_option_that_names_them(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=rf"{reason}\. Choose another folder \(paths\.artifacts=DIR\)"):
        require_folder(tmp_path / name, "paths.artifacts")


def test_folders_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # as for a user who is not root
    with pytest.raises(StoreError, match="cannot be written"):
        require_folder(tmp_path / "new", "paths.output")


def test_the_advice_of_a_write_is_right_in_every_command(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="write to another folder") as error:
        write_atomic(tmp_path / "file" / "a", lambda file: file.write(b"a"))
    assert "paths." not in str(error.value)
