"""The files that a folder has are those that one sees in it: links followed, what systems put there left out."""

import os

import pytest

from iec.errors import MetricError
from iec.metrics.images.listing import files_of


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_links_to_folders_and_files_are_followed(tmp_path):
    real, here = tmp_path / "elsewhere", tmp_path / "images"
    touch(real, "n03/c.png", "deep/er/d.png")
    touch(here, "n01/a.png", "b.png")
    (here / "n03").symlink_to(real / "n03", target_is_directory=True)
    (here / "all").symlink_to(real, target_is_directory=True)
    (here / "link.png").symlink_to(here / "b.png")
    below = ["all/deep/er/d.png", "all/n03/c.png", "b.png", "link.png", "n01/a.png", "n03/c.png"]
    assert sorted(files_of(here, recursive=True)) == below
    assert sorted(files_of(here, recursive=False)) == ["b.png", "link.png"]
    by_link = tmp_path / "by_link"
    by_link.symlink_to(here, target_is_directory=True)
    assert sorted(files_of(by_link, recursive=True)) == below


def test_links_that_would_never_end_are_not_followed(tmp_path):
    touch(tmp_path, "a/x.png", "b/y.png")
    for name, target in {
        "up": tmp_path,
        "a/up": tmp_path,
        "a/self": tmp_path / "a",
        "a/b": tmp_path / "b",
        "b/a": tmp_path / "a",
    }.items():
        (tmp_path / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert sorted(files_of(tmp_path, recursive=True)) == ["a/b/y.png", "a/x.png", "b/a/x.png", "b/y.png", "loop.png"]


def test_what_systems_and_editors_put_there_is_left_out(tmp_path):
    touch(
        tmp_path, "1.png", "A.PNG", "sub/2.JPG", ".hidden/in.png", "sub/.ipynb_checkpoints/2-checkpoint.jpg", ".DS_Store", "._1.png"
    )
    touch(tmp_path, "__MACOSX/._1.png", "__MACOSX/1.png", "sub/@eaDir/2.JPG/small.jpg", "sub/._2.JPG")
    assert sorted(files_of(tmp_path, recursive=True)) == ["1.png", "A.PNG", "sub/2.JPG"]
    assert list(files_of(tmp_path / ".hidden", recursive=True)) == ["in.png"]  # asked for by name


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    touch(tmp_path, "closed/1.png")
    scan = os.scandir

    def closed(path):
        if path == tmp_path / "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert list(files_of(tmp_path, recursive=False)) == []
    with pytest.raises(MetricError, match="closed cannot be read: Permission denied"):
        list(files_of(tmp_path, recursive=True))
