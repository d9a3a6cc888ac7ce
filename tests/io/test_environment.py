"""The commit that a result is recorded with."""

import shutil
import subprocess
from pathlib import Path

import pytest

from iec.io import environment


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_clone_that_the_package_belongs_to(tmp_path, monkeypatch):
    def git(*words):
        names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", "-C", str(tmp_path), *names, *words], check=True, capture_output=True, text=True).stdout

    copy = tmp_path / "site-packages/environment.py"
    copy.parent.mkdir()
    copy.write_text(Path(environment.__file__).read_text())
    monkeypatch.setattr(environment, "__file__", str(copy))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "of another project")
    assert environment.git_revision() is None  # installed inside a clone of something else
    git("add", ".")
    git("commit", "-q", "-m", "of this one")
    assert environment.git_revision() == git("rev-parse", "HEAD")[:12]


def test_packages_that_are_not_installed_are_left_out():
    assert list(environment.installed(["numpy", "no-such-package"])) == ["numpy"]
