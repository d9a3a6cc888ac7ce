"""The command, and a rehearsal of all parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iec.errors import ConfigError
from iec.gpucheck import __main__ as command
from iec.gpucheck import run
from iec.gpucheck.__main__ import default_folder, main
from iec.gpucheck.catalog import PARTS
from iec.gpucheck.part import Line, Part
from iec.io.resources import experiments
from tests.conftest import ENV

ROOT = Path(__file__).parents[2]


def iec(*arguments):
    words = [sys.executable, "-m", "iec", "gpu-check", *arguments]
    return subprocess.run(words, cwd=ROOT, env=ENV, capture_output=True, text=True)


def test_a_rehearsal_measures_every_part_and_none_fails(tmp_path):
    done = iec("--device", "cpu", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [part["name"] for part in report["parts"]] == [part.name for part in PARTS]
    assert {part["state"] for part in report["parts"]} == {"finished"}, done.stdout
    verdicts = {line["verdict"] for part in report["parts"] for line in part["lines"]}
    assert verdicts <= {"ok", "note", "skipped"}
    assert "This is a rehearsal on a CPU" in (tmp_path / "report.md").read_text()


def test_what_cannot_be_run_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_workers", pytest.fail)
    with pytest.raises(ConfigError, match="--only: there is no part speeed"):
        main(["--device", "cpu", "--only", "speeed"])
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match=r"is not a folder. Choose another folder \(--output=DIR\)"):
        main(["--device", "cpu", "--output", str(tmp_path / "file")])


def test_the_exit_code_tells_whether_a_part_failed(tmp_path, monkeypatch):
    def measure(bench):
        yield Line.at_most("error", bench.folder.exists(), limit)

    monkeypatch.setattr(run, "run_workers", lambda work, tasks, receive, **_: [work(t, receive) for t in tasks.values()])
    monkeypatch.setattr("iec.gpucheck.__main__.PARTS", (part := Part("one", "One?", measure, 1),))
    monkeypatch.setattr("iec.gpucheck.__main__.chosen", lambda *_: (part,))
    limit = 1
    assert main(["--device", "cpu", "--output", str(tmp_path)]) == 0
    limit = 0
    assert main(["--device", "cpu", "--output", str(tmp_path)]) == 0  # kept
    assert main(["--device", "cpu", "--output", str(tmp_path), "--again"]) == 1


def test_the_parts_are_listed_with_their_budgets(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [part.name for part in PARTS]


def test_only_the_report_of_a_gpu_lies_among_the_results():
    assert default_folder(torch.device("cuda"), "full") == experiments() / "results" / "gpu"
    assert default_folder(torch.device("cuda"), "toy") == Path("outputs/gpu_toy")
    assert default_folder(torch.device("cpu"), "toy") == Path("outputs/gpu_rehearsal")


@pytest.mark.parametrize(("checkout", "folder"), [(True, "experiments/results/gpu"), (False, "outputs/gpu")])
def test_the_help_names_the_folder_of_the_report(monkeypatch, capsys, checkout, folder):
    monkeypatch.setattr(command, "_checkout", lambda: checkout)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"default: {folder}, " in " ".join(capsys.readouterr().out.split())
    assert str(default_folder(torch.device("cuda"), "full")).endswith(folder)


@pytest.mark.parametrize(("name", "forked"), [("cuda", False), ("cpu", True)])
def test_a_process_for_a_gpu_is_a_new_one(monkeypatch, name, forked):
    """What is forked after a library has asked the driver for its devices cannot use them."""
    seen = []
    monkeypatch.setattr(
        run, "run_workers", lambda work, tasks, receive, forked, preload: seen.append(forked) or receive(run._End("finished"))
    )
    part = Part("one", "One?", iter, 1)
    assert run.run_part(part, torch.device(name), "toy", "1").state == "finished"
    assert seen == [forked]
