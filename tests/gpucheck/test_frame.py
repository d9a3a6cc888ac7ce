"""The frame around the parts: what is kept, what a failure does to the others, what the report says. With parts made up."""

import json
import os
import signal
import time

import pytest
import torch

from iec.errors import ConfigError
from iec.gpucheck import run
from iec.gpucheck.catalog import PARTS, chosen
from iec.gpucheck.machine import Machine
from iec.gpucheck.part import Bench, Line, Part, attempted
from iec.gpucheck.report import markdown, write_report
from iec.gpucheck.results import Results, stored
from iec.io.workers import WorkerError, run_workers

CPU = torch.device("cpu")


def good(bench):
    yield Line.at_most("error", 0.5, 1.0, "RMS")
    yield Line.note("images per second", 3.0)
    yield Line.skipped("TF32", "no | TF32 here")


def over(bench):
    yield Line.at_most("error", float("nan"), 1.0)


def broken(bench):
    yield Line.note("first")
    raise RuntimeError("no kernel image")


def endless(bench):
    while True:
        time.sleep(0.01)
        yield Line.note("again")


def hanging(bench):
    yield Line.note("first")
    time.sleep(60)


def killed(bench):
    os.kill(os.getpid(), signal.SIGKILL)
    yield Line.note("never")


def part(measure, seconds=60.0):
    return Part(measure.__name__, f"Is it {measure.__name__}?", measure, seconds)


@pytest.fixture
def here(monkeypatch):
    """Parts are measured in this process."""

    def in_this_process(work, tasks, receive, **_):
        for task in tasks.values():
            work(task, receive)

    monkeypatch.setattr(run, "run_workers", in_this_process)


@pytest.fixture
def forked(monkeypatch, one_thread):
    """Parts are measured in a fork of this process, of which only its end is heard."""

    def in_a_fork(work, tasks, receive, **_):
        [(name, task)] = tasks.items()
        if not (process := os.fork()):
            work(task, lambda _: None)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        raise WorkerError(f"{name} ended with code {code}. The way out of another command.")

    monkeypatch.setattr(run, "run_workers", in_a_fork)


@pytest.fixture(scope="module")
def machine():
    return Machine.of(CPU)


def check(folder, parts, machine, again=False):
    """As the command does it."""
    results = stored(folder, machine, "toy", "2026-11-25")
    write = lambda now: write_report(now, folder)  # noqa: E731
    return run.run_parts(parts, results, CPU, "toy", write, [p.name for p in parts], again)


def test_a_part_that_fails_is_reported_and_the_others_are_measured(here, machine, tmp_path):
    results = check(tmp_path, [part(broken), part(over), part(good)], machine)
    assert [(p.name, p.state, p.failed) for p in results.parts] == [
        ("broken", "broken", True), ("over", "finished", True), ("good", "finished", False)
    ]  # fmt: skip
    assert [line.what for line in results.of("broken").lines] == ["first"]
    assert results.of("broken").error.splitlines()[-1] == "RuntimeError: no kernel image"


def test_a_finished_part_is_kept_and_a_failed_one_is_measured_again(here, machine, tmp_path, caplog):
    caplog.set_level("INFO")
    first = check(tmp_path, [part(broken), part(good)], machine)
    second = check(tmp_path, [part(broken), part(good)], machine)
    assert second.of("good") == first.of("good")  # to the second that it took
    assert "good: kept, it is finished" in caplog.messages
    assert not any("broken: kept" in message for message in caplog.messages)
    assert check(tmp_path, [part(good)], machine, again=True).of("good").seconds != first.of("good").seconds


def test_other_sources_measure_a_part_again_and_what_is_left_of_older_ones_is_said(here, machine, tmp_path):
    check(tmp_path, [part(good), part(over)], machine)
    changed = Machine(**{**vars(machine), "version": "changed"})
    results = check(tmp_path, [part(good)], changed)
    assert (results.of("good").version, results.of("over").version) == ("changed", machine.version)
    assert markdown(results).count(f"Measured by other sources, version {machine.version}") == 1


def test_a_report_of_another_device_or_size_is_set_aside(here, machine, tmp_path):
    check(tmp_path, [part(good)], machine)
    before = (tmp_path / "report.md").read_text()
    assert len(stored(tmp_path, machine, "toy", "2026-11-25").parts) == 1
    other = Machine(**{**vars(machine), "device": "NVIDIA X (cuda)"})
    assert stored(tmp_path, other, "toy", "2026-11-25").parts == ()
    aside = {path.suffix: path for path in tmp_path.iterdir()}
    assert sorted(aside) == [".json", ".md"]
    assert aside[".md"].read_text() == before
    assert aside[".md"].stem == aside[".json"].stem
    assert aside[".md"].stem.endswith("-cpu-toy")
    write_report(Results(other, "toy", "2026-11-25"), tmp_path)
    assert stored(tmp_path, other, "full", "2026-11-25").parts == ()
    assert (tmp_path / "report-nvidia-x-cuda-toy.json").is_file()


def test_a_part_beyond_its_budget_stops_between_lines_and_is_not_finished(here, machine, tmp_path):
    results = check(tmp_path, [part(endless, seconds=0.003)], machine)
    assert results.of("endless").state == "stopped"
    assert 1 <= len(results.of("endless").lines) < 10
    assert not results.is_finished("endless")


def test_a_part_that_hangs_is_ended_and_the_report_says_where(forked, machine, monkeypatch):
    monkeypatch.setattr(run, "GRACE", 0.2)
    result = run.run_part(part(hanging, seconds=0.01), CPU, "toy", "1")
    assert result.state == "broken"
    assert result.error.startswith("hanging ended with code 1\n")
    assert "test_frame.py" in result.error


def test_a_part_that_is_killed_is_broken_and_another_commands_way_out_is_not_repeated(forked):
    result = run.run_part(part(killed), CPU, "toy", "1")
    assert (result.state, result.error) == ("broken", "killed ended with code -9")


def test_a_part_is_measured_in_a_new_process_as_for_a_gpu(monkeypatch):
    monkeypatch.setattr(run, "run_workers", lambda *given, forked, preload: run_workers(*given, forked=False))
    result = run.run_part(part(good), CPU, "toy", "1")
    assert (result.state, [line.verdict for line in result.lines]) == ("finished", ["ok", "note", "skipped"])


def test_a_failed_line_does_not_end_its_part():
    def measure():
        yield Line.note("before")
        raise ValueError("odd")

    before, failed = attempted("decoder", measure)
    assert (before.what, failed.what, failed.verdict) == ("before", "decoder", "failed")
    assert failed.remark.endswith("ValueError: odd")


def test_the_page_says_what_was_run_on_what(here, machine, tmp_path):
    text = markdown(check(tmp_path, [part(broken), part(good)], machine))
    assert text == (tmp_path / "report.md").read_text()
    assert text.startswith(f"# Check of {machine.device}\n\n**This is a rehearsal on a CPU.")
    assert "Networks are tiny versions" in text
    assert "| broken | **failed** | 1 note | 0 s | Is it broken? |" in text
    assert "| ok | error | 0.5 | 1 | RMS |  |" in text
    assert "| skipped | TF32 |  |  |  | no \\| TF32 here |" in text
    assert "RuntimeError: no kernel image\n```" in text
    assert json.loads((tmp_path / "report.json").read_text())["machine"]["version"] == machine.version
    gpu = Results(Machine(**{**vars(machine), "kind": "cuda", "device": "NVIDIA X (cuda)"}), "full", "2026-11-25")
    assert "rehearsal" not in markdown(gpu)
    assert "tiny" not in markdown(gpu)


def test_parts_are_chosen_by_name():
    parts = (part(good), part(over))
    assert chosen(None, None, parts) == parts
    assert chosen("over,good", "good", parts) == parts[1:]
    with pytest.raises(ConfigError, match="--skip: there is no part bad. Choose of good,over."):
        chosen(None, "bad", parts)
    with pytest.raises(ConfigError, match="leave no part"):
        chosen("good", "good", parts)


def test_all_parts_together_end_within_nine_minutes():
    start = 15
    assert sum(p.seconds + run.GRACE for p in PARTS) + start <= 540
    assert len({p.name for p in PARTS}) == len(PARTS)


def test_parts_have_a_folder_that_is_gone_afterwards(here):
    folders = []

    def writing(bench: Bench):
        folders.append(bench.folder)
        (bench.folder / "file").write_text("x")
        yield Line.note("written")

    run.run_part(part(writing), CPU, "toy", "1")
    assert not folders[0].exists()
