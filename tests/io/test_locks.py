"""Locks between processes: one at a time, crashes do not block, a heartbeat keeps a lock."""

import errno
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest

from iec.errors import StoreError
from iec.io import locks
from iec.io.locks import Pace, _Lock, exclusive

FORK = multiprocessing.get_context("fork")
QUICK = Pace(beat=0.05, stale=3600, look=0.02)


def make_once(folder, fails=()):
    """Make a file if it is not there. Every making is noted."""
    with exclusive(folder / "file.lock", "making", QUICK):
        if not (folder / "file").exists():
            with (folder / "makings").open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.05)  # the others come meanwhile
            if len((folder / "makings").read_text().split()) in fails:
                raise RuntimeError("no luck")
            (folder / "file").touch()


def run_together(count, function, *arguments):
    processes = [FORK.Process(target=function, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return sorted(process.exitcode for process in processes)


@pytest.fixture
def foreign_lock(tmp_path, monkeypatch):
    """A lock that another machine left in the folder."""
    with monkeypatch.context() as patch:
        patch.setattr(locks, "_host", lambda: "elsewhere pid:[1]")
        lock = _Lock(tmp_path / "file.lock")
    assert lock.take()
    return lock


@pytest.fixture
def clock(monkeypatch):
    """The waiting process's own: it stands still, but for the sleeps. ``clock.at``: time -> what happens then."""
    clock = SimpleNamespace(now=0.0, at={})

    def sleep(seconds):
        clock.now = round(clock.now + seconds)
        clock.at.get(clock.now, lambda: None)()

    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def test_one_makes_it_and_all_others_find_it(tmp_path):
    assert run_together(6, make_once, tmp_path) == [0] * 6
    assert len((tmp_path / "makings").read_text().split()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "makings"}


def test_after_an_error_the_next_one_tries(tmp_path):
    assert run_together(4, make_once, tmp_path, (1, 2)) == [0, 0, 1, 1]
    assert len((tmp_path / "makings").read_text().split()) == 3
    assert not (tmp_path / "file.lock").exists()


def test_a_killed_holder_on_this_machine_is_replaced_at_once(tmp_path, caplog):
    def hold():
        with exclusive(tmp_path / "file.lock", "making", QUICK):
            (tmp_path / "ready").touch()
            signal.pause()

    holder = FORK.Process(target=hold)
    holder.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    holder.kill()
    holder.join()
    make_once(tmp_path)  # without any staleness: that of QUICK is an hour
    assert (tmp_path / "file").exists() and "has stopped; taking its place" in caplog.text


def test_a_lock_of_another_machine_is_taken_over_when_its_heart_stops(foreign_lock, clock, caplog):
    beats = [1, 2, 3]
    clock.at = {t: lambda t=t: os.utime(foreign_lock.path, ns=(t, t)) for t in beats}
    with exclusive(foreign_lock.path, "making", Pace(beat=10, stale=180, look=1)):
        assert clock.now == 3 + 180 + 1  # the first look that is later than that
        assert "has stopped; taking its place" in caplog.text
        foreign_lock.leave()  # it was not dead after all, and leaves the new holder's lock alone
        assert "was taken over by another process" in caplog.text and foreign_lock.path.exists()
    assert not foreign_lock.path.exists()


def test_a_lock_that_is_there_but_cannot_be_read_is_looked_at_at_intervals(tmp_path, monkeypatch, clock):
    """As on a network file system, which shows the name of a file for a while after it is gone."""
    (tmp_path / "file.lock").touch()
    monkeypatch.setattr(locks, "_text", lambda path: None)
    clock.at[3] = (tmp_path / "file.lock").unlink
    lock = _Lock(tmp_path / "file.lock")
    locks._take(lock, "making", Pace(look=1.0))
    assert clock.now == 3 and (tmp_path / "file.lock").read_text() == lock.text


def test_a_heartbeat_keeps_a_lock_for_as_long_as_its_holder_works(foreign_lock, clock, caplog):
    caplog.set_level("INFO")
    clock.at = {t: lambda t=t: os.utime(foreign_lock.path, ns=(t, t)) for t in range(15, 2000, 15)}
    clock.at[2000] = foreign_lock.leave
    with exclusive(foreign_lock.path, "making", Pace(beat=10, stale=180, look=1, say=300)):
        assert clock.now == 2000
    assert caplog.text.count(f"waiting: process {os.getpid()} on elsewhere") == 7 and "is making" in caplog.text
    assert "has stopped" not in caplog.text


def test_a_holder_touches_its_lock(tmp_path):
    with exclusive(tmp_path / "file.lock", "making", Pace(beat=0.001)):
        os.utime(tmp_path / "file.lock", (0, 0))
        deadline = time.monotonic() + 60
        while (tmp_path / "file.lock").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (tmp_path / "file.lock").stat().st_mtime > 0


def test_a_takeover_never_removes_the_lock_of_a_quicker_one(tmp_path):
    lock = _Lock(tmp_path / "file.lock")
    assert lock.take()
    lock.remove("what an older holder wrote")
    assert lock.path.read_text() == lock.text and [path.name for path in tmp_path.iterdir()] == ["file.lock"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_lock_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.os, "open", refuse)
    with pytest.raises(StoreError, match=f"{os.strerror(number)}. Free space or choose"), exclusive(tmp_path / "lock", "making"):
        raise AssertionError("entered")


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Cannot write"), exclusive(tmp_path / "file" / "lock", "making"):
        raise AssertionError("entered")


def test_errors_and_exits_of_the_work_itself_pass_through(tmp_path):
    for error in (OSError(errno.EACCES, "the work's own"), SystemExit(-1)):
        with pytest.raises(type(error)), exclusive(tmp_path / "file.lock", "making"):
            raise error
        assert list(tmp_path.iterdir()) == []
