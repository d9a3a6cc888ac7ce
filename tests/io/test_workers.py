"""Processes that share some work: what they send, how they fail, and that none of them is left behind.

A server of processes is started in other processes only: it lives as long as its starter, and here it would know no libraries.
"""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from iec.errors import IECError
from iec.io.workers import WorkerError, run_workers

ROOT = Path(__file__).parents[2]


def counting(part, send):
    print("up to", part)
    for k in range(part):
        send(k)


def starting_another(part, send):
    run_workers(counting, {"inner": part}, send, forked=False)


def failing_at_one(part, send):
    """The first process fails when the other is at work, and that one waits for its end."""
    folder, k = part
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    if k == 1:
        raise IECError("all is lost")
    signal.pause()


def waiting(folder, send):
    (Path(folder) / str(os.getpid())).touch()
    send(os.environ["SAID_BY_THE_STARTER"])
    signal.pause()


def wait_until_gone(folder):
    """Until none of the processes is left; not a question of time, but a test has to end."""
    for path in folder.iterdir():
        for _ in range(1000):
            stat = Path(f"/proc/{path.name}/stat")
            if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
            time.sleep(0.02)
        else:
            raise AssertionError(f"process {path.name} goes on")


def test_what_is_sent_arrives_and_what_is_printed_is_logged_by_name(caplog):
    caplog.set_level("INFO")
    received = []
    run_workers(counting, {"left": 3, "right": 2}, received.append, forked=False)
    assert sorted(received) == [0, 0, 1, 1, 2]
    assert "[left] up to 3" in caplog.text and "[right] up to 2" in caplog.text


def test_an_error_is_told_by_name_and_ends_the_others(tmp_path):
    with pytest.raises(WorkerError, match=r"^right failed: IECError: all is lost\nWhat is finished is kept; the same command"):
        run_workers(failing_at_one, {"left": (tmp_path, 0), "right": (tmp_path, 1)}, print, forked=False)
    assert len(list(tmp_path.iterdir())) == 2
    wait_until_gone(tmp_path)


def test_a_killed_process_is_named_and_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("SAID_BY_THE_STARTER", "now")
    received = []

    def kill(value):
        received.append(value)
        for process in active_children():
            if process.name == "left":
                os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"^left was killed by SIGKILL\. .* If memory ran out, use fewer processes"):
        run_workers(waiting, {"left": tmp_path, "right": tmp_path}, kill, forked=False)
    assert set(received) == {"now"}
    wait_until_gone(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_starter(tmp_path, signum):
    code = (
        "import signal, sys; from iec.io.workers import run_workers; from tests.io.test_workers import waiting\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, the tests among them, ignore it\n"
        "run_workers(waiting, dict.fromkeys(('left', 'right'), sys.argv[1]), print)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SAID_BY_THE_STARTER": "now"}
    starter = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.iterdir())) < 2:
        assert starter.poll() is None
        time.sleep(0.01)
    starter.send_signal(signum)
    assert starter.wait(60)
    wait_until_gone(tmp_path)


def test_a_process_may_start_processes_of_its_own():
    received = []
    run_workers(starting_another, {"outer": 3}, received.append, forked=False)
    assert received == [0, 1, 2]
