"""Paths that users give: an output that cannot be written is known before anything is computed for it, and ~ is their home."""

from pathlib import Path

import pytest

from iec.errors import ConfigError, StoreError, WeightsError
from iec.io.paths import require_writable, user_path
from iec.metrics.extractors.inception_weights import find_weights
from iec.metrics.references.catalog import user_folder
from iec.models.weights import models_folder
from iec.report.__main__ import _output


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
    with pytest.raises(ConfigError, match="~nobody-here/x: that home folder is not known. Write the path in full."):
        user_path("~nobody-here/x")


def test_a_tilde_means_the_same_in_every_option_variable_and_argument():
    """One function expands it; an option that takes a bare Path would make a folder of that name."""
    root = Path(__file__).parents[2]
    sources = {path: path.read_text() for folder in ("iec", "scripts") for path in (root / folder).rglob("*.py")}
    assert [path for path, text in sources.items() if "type=Path" in text] == []
    assert [path for path, text in sources.items() if "expanduser" in text] == [root / "iec/io/paths.py"]


@pytest.mark.parametrize("variable", ["IEC_MODELS", "IEC_REFERENCES", "IEC_INCEPTION_WEIGHTS"])
def test_a_tilde_is_the_home_in_variables_of_the_environment(variable, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/x")
    if variable == "IEC_INCEPTION_WEIGHTS":
        with pytest.raises(WeightsError, match=f"{tmp_path}/x is not a file"):
            find_weights()
    else:
        assert {"IEC_MODELS": models_folder, "IEC_REFERENCES": user_folder}[variable]() == tmp_path / "x"


def test_a_tilde_is_the_home_for_the_report_as_for_the_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _output(["paths.output='~/out'"]) == tmp_path / "out"
