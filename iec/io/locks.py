"""One process at a time, on one machine or on many that share files.

A lock is a file that is created with O_EXCL, touched by its holder every few seconds, and removed at the end. It saves work only:
whoever holds it writes the same bytes atomically, so that two holders at once, after a lost heartbeat, do no harm. No clocks are
compared. ``fcntl`` locks are not used, because network file systems implement them differently. Nor is `filelock`: its lease has
the same heartbeat, but on Linux takes over from a dead holder with ``renameat2(RENAME_EXCHANGE)``, which NFS does not have, so
that the others would wait for ever.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from iec.errors import StoreError

log = logging.getLogger(__name__)
GONE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True)
class Pace:
    """Seconds between two heartbeats, without any before a lock counts as left behind, between two looks, between two log lines.

    ``stale`` has to be longer than the attributes of a file are cached on a network file system (60 s by default on NFS).
    """

    beat: float = 15.0
    stale: float = 180.0
    look: float = 1.0
    say: float = 300.0


PACE = Pace()


@contextmanager
def exclusive(path: Path, doing: str, pace: Pace = PACE) -> Iterator[None]:
    """Hold the lock ``path``; wait while another process holds it.

    A holder that was killed is replaced: at once if it ran on this machine, else ``pace.stale`` seconds after its last heartbeat.

    path: on storage that all processes share, best in the folder of what is made: making a file there also refreshes what a
    network file system remembers of the folder. doing: what the holder does, for the log of those who wait.
    Raises `StoreError` when the lock cannot be written.
    """
    lock = _Lock(path)
    try:
        _take(lock, doing, pace)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror or error}. Free space or choose another folder.") from error
    finished = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, pace.beat, finished), daemon=True)
    beating.start()
    try:
        yield
    finally:
        finished.set()
        beating.join()
        lock.leave()


class _Lock:
    """A lock file as one process sees it. ``text``: what this process writes into it, unlike that of any other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        holder = {
            "host": _host(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "id": uuid.uuid4().hex,
        }
        self.text = json.dumps(holder, sort_keys=True)

    def take(self) -> bool:
        """Whether the lock was free."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self.text)
        except OSError:  # the disk is full
            self.path.unlink(missing_ok=True)
            raise
        return True

    def leave(self) -> None:
        """Give the lock back, unless it was taken over."""
        if _text(self.path) == self.text:
            self.path.unlink(missing_ok=True)
        else:
            log.warning("note: %s was taken over by another process, because it saw no heartbeat", self.path)

    def remove(self, left_behind: str) -> None:
        """Remove the lock that holds the text ``left_behind``."""
        aside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if aside.read_text(encoding="utf-8") != left_behind:  # another one was quicker, and this is its lock: put it back
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()


def _take(lock: _Lock, doing: str, pace: Pace) -> None:
    """Wait until this process holds the lock."""
    seen, changed, said = None, 0.0, -pace.say
    while not lock.take():
        holder, now = _text(lock.path), time.monotonic()
        if holder is None:  # just given back; or a network file system still shows a name whose file is gone
            time.sleep(pace.look)
            continue
        if (state := (holder, _last_beat(lock.path))) != seen:
            seen, changed = state, now
        if now - said > pace.say:
            said = now
            log.info("waiting: %s is %s", _who(holder), doing)
        if _is_dead(holder) or now - changed > pace.stale:
            log.warning("note: %s was %s and has stopped; taking its place", _who(holder), doing)
            lock.remove(holder)
        else:
            time.sleep(pace.look)


def _beat(lock: _Lock, seconds: float, finished: threading.Event) -> None:
    while not finished.wait(seconds) and _text(lock.path) == lock.text:
        with suppress(OSError):  # a file system that hangs for a while must not end the work
            os.utime(lock.path)


def _text(path: Path) -> str | None:
    """None if the file is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _last_beat(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        if error.errno in GONE:
            return 0
        raise


def _host() -> str:
    """The machine, and the container if process numbers mean something else in it."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink()}" if namespace.is_symlink() else socket.gethostname()


def _holder(text: str) -> dict[str, str | int | None]:
    try:
        return dict(json.loads(text))
    except ValueError:  # being written at this moment
        return {}


def _who(text: str) -> str:
    holder = _holder(text)
    job = f", Slurm job {holder['job']}" if holder.get("job") else ""
    return f"process {holder['pid']} on {str(holder['host']).split()[0]}{job}, since {holder['since']}," if holder else "a process"


def _is_dead(text: str) -> bool:
    """Whether the holder is of this machine and gone. False also where that cannot be known."""
    holder = _holder(text)
    if os.name == "nt" or not holder or holder["host"] != _host():
        return False
    try:
        os.kill(int(str(holder["pid"])), 0)  # asks only
    except OSError as error:
        return error.errno == errno.ESRCH
    return False
