"""Locks between processes: one computes, crashes do not block, a heartbeat keeps a lock."""

import errno
import multiprocessing
import os
import signal
import time

import pytest

from iec.errors import StoreError
from iec.io import locks
from iec.io.locks import Pace, _Lock, first_alone

FORK = multiprocessing.get_context("fork")
QUICK = Pace(beat=0.05, stale=3600, look=0.02)


def make_once(folder, fails=()):
    """What a technique does: make a file if it is not there. Every making is noted."""
    with first_alone(folder / "made.lock", "making", QUICK):
        if not (folder / "made").exists():
            with (folder / "makings").open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.2)
            if len((folder / "makings").read_text().split()) in fails:
                raise RuntimeError("no luck")
            (folder / "made").touch()


def run_together(count, function, *arguments):
    processes = [FORK.Process(target=function, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return sorted(process.exitcode for process in processes)


@pytest.fixture
def foreign(monkeypatch):
    """Locks of this process look like those of another machine to processes that fork before."""

    def become():
        monkeypatch.setattr(locks, "_host", lambda: "elsewhere pid:[1]")

    return become


def left_behind(path):
    """The lock of a process of another machine."""
    lock = _Lock(path)
    assert lock.take()
    return lock


def test_one_makes_it_and_all_others_find_it(tmp_path):
    assert run_together(6, make_once, tmp_path) == [0] * 6
    assert len((tmp_path / "makings").read_text().split()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"made", "makings", "made.done"}


def test_after_an_error_the_next_one_goes_in_alone(tmp_path):
    assert run_together(4, make_once, tmp_path, (1, 2)) == [0, 0, 1, 1]
    assert len((tmp_path / "makings").read_text().split()) == 3
    assert not (tmp_path / "made.lock").exists()


def test_those_that_waited_go_in_together(tmp_path):
    """Two that meet inside a barrier, which they could not one after the other."""
    barrier, held = FORK.Barrier(2), left_behind(tmp_path / "made.lock")

    def wait_and_meet():
        with first_alone(held.path, "making", QUICK):
            barrier.wait(30)

    processes = [FORK.Process(target=wait_and_meet) for _ in range(2)]
    for process in processes:
        process.start()
    time.sleep(0.3)  # both have seen the lock
    held.leave(done=True)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_killed_holder_on_this_machine_is_replaced_at_once(tmp_path, caplog):
    def hold():
        with first_alone(tmp_path / "made.lock", "making", QUICK):
            signal.pause()

    holder = FORK.Process(target=hold)
    holder.start()
    while not (tmp_path / "made.lock").exists():
        time.sleep(0.01)
    holder.kill()
    holder.join()
    make_once(tmp_path)  # without any staleness: that of QUICK is an hour
    assert (tmp_path / "made").exists() and "has stopped; taking its place" in caplog.text


def test_a_lock_of_another_machine_is_taken_over_when_its_heart_stops(tmp_path, foreign, caplog):
    lock = left_behind(tmp_path / "made.lock")
    foreign()
    with first_alone(lock.path, "making", Pace(beat=10, stale=0.3, look=0.02)):
        assert "has stopped; taking its place" in caplog.text
        lock.leave(done=True)  # it was not dead after all, and leaves the new holder's lock alone
        assert "was taken over by another process" in caplog.text and lock.path.exists()
    assert not lock.path.exists()


def test_a_heartbeat_keeps_it(tmp_path, foreign, caplog):
    release = FORK.Event()

    def hold():
        with first_alone(tmp_path / "made.lock", "making", QUICK):
            release.wait(60)
            (tmp_path / "made").touch()

    holder = FORK.Process(target=hold)
    holder.start()
    while not (tmp_path / "made.lock").exists():
        time.sleep(0.01)
    foreign()
    caplog.set_level("INFO")
    releaser = FORK.Process(target=lambda: (time.sleep(3), release.set()))
    releaser.start()
    with first_alone(tmp_path / "made.lock", "making", Pace(beat=10, stale=1.5, look=0.02)):
        assert (tmp_path / "made").exists()  # not before the holder was done, twice the staleness later
    assert f"waiting: process {holder.pid} on " in caplog.text and "is making" in caplog.text
    assert "has stopped" not in caplog.text
    holder.join(60)
    releaser.join(60)


def test_a_takeover_never_removes_the_lock_of_a_quicker_one(tmp_path):
    lock = left_behind(tmp_path / "made.lock")
    lock.remove("what an older holder wrote")
    assert lock.path.read_text() == lock.text and [path.name for path in tmp_path.iterdir()] == ["made.lock"]


@pytest.mark.parametrize(("number", "raises"), [(errno.EROFS, False), (errno.ENOSPC, True)])
def test_a_read_only_folder_is_entered_without_a_lock_and_a_full_disk_is_an_error(tmp_path, monkeypatch, number, raises):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.os, "open", refuse)
    entered = []
    try:
        with first_alone(tmp_path / "made.lock", "making"):
            entered.append(True)
    except StoreError as error:
        assert "No space left" in str(error)
    assert entered == ([] if raises else [True])


def test_errors_and_exits_of_the_work_itself_pass_through(tmp_path):
    for error in (OSError(errno.EACCES, "the work's own"), SystemExit(-1)):
        with pytest.raises(type(error)), first_alone(tmp_path / "made.lock", "making"):
            raise error
        assert list(tmp_path.iterdir()) == []
