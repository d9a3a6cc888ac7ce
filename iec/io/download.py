"""Files from the web: resumed, checked by hash, and put in place only when whole. Never a connection where offline is asked for."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from iec.errors import StoreError, WeightsError
from iec.io.progress import Report, reported

BLOCK, TIMEOUT, ATTEMPTS, PAUSE = 2**20, 30.0, 5, 2.0
OFFLINE = ("HF_HUB_OFFLINE", "IEC_OFFLINE")
PASSING = (408, 416, 429)
"""Refusals that another attempt may change: timed out, part longer than the file, too many requests."""
CLOSED = (401, 403)
LOGIN = " (it wants a login, or its licence accepted: see its page in a browser)"
log = logging.getLogger(__name__)


class _Interrupted(Exception):
    """No answer, or the connection ended before the file did."""


def offline() -> bool:
    """Whether the environment forbids connections (HF_HUB_OFFLINE=1 or IEC_OFFLINE=1)."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE)


def fetch(url: str, path: Path, *, sha256: str | None = None, md5: str | None = None) -> Path:
    """``url`` at ``path``. What arrived of an interrupted download is kept as ``path.part`` and completed by the next call.

    A file that is there already is checked and kept. The part is continued only if the server still has the same file (by its
    ETag or date); else it starts anew. The hashes are of the whole file. Five attempts, 30 s without a byte end one. Raises
    `WeightsError`: offline, unreachable, refused, or another file than expected; `StoreError`: it cannot be written.
    """
    if path.is_file():
        _check(path, sha256, md5)
        return path
    part, by_hand = path.with_name(f"{path.name}.part"), f"Or put the file there by hand: {path}"
    if offline():
        raise WeightsError(f"{path} does not exist, and {' or '.join(OFFLINE)} forbids fetching {url}. {by_hand}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _complete(url, part, by_hand)
        try:
            _check(part, sha256, md5)
        except WeightsError:
            part.unlink()
            _marker(part).unlink(missing_ok=True)
            raise
        part.replace(path)
        _marker(part).unlink(missing_ok=True)
    except OSError as error:  # of this machine: those of the connection are `_Interrupted`
        raise StoreError(
            f"Cannot write {path}: {error.strerror or error}. What arrived is kept; free space or make the folder writable, and "
            "the same command goes on."
        ) from error
    return path


def _complete(url: str, part: Path, by_hand: str) -> None:
    """Receive what ``part`` lacks, in a few attempts. Raises `WeightsError`."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with reported(f"fetching {part.stem}") as report:
                _receive(url, part, report)
            return
        except HTTPError as error:
            if error.code == 416 and _had_arrived(part, error):
                return
            if (error.code < 500 and error.code not in PASSING) or attempt == ATTEMPTS:
                closed = LOGIN if error.code in CLOSED else ""
                raise WeightsError(f"{url} answers {error.code} {error.reason}{closed}. {by_hand}") from error
        except _Interrupted as error:
            if attempt == ATTEMPTS:
                raise WeightsError(
                    f"{url} could not be fetched ({error}). What arrived is kept; the same command goes on. {by_hand}"
                ) from error
            log.info("%s: %s; trying again", url, error)
        time.sleep(PAUSE * attempt)


def _receive(url: str, part: Path, report: Report) -> None:
    """Complete ``part``. Raises `_Interrupted` if the file is not whole afterwards."""
    headers, marker, done = {}, _marker(part), 0
    if part.is_file() and marker.is_file() and (done := part.stat().st_size):
        headers = {"Range": f"bytes={done}-", "If-Range": marker.read_text(encoding="utf-8")}
    with _ask(Request(url, headers=headers)) as answer:
        resumed = answer.status == 206
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            marker.unlink()
            raise _Interrupted("the server goes on elsewhere in the file than asked; starting anew")
        done = done if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None and length.isdecimal() else None
        tags = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified")]
        tag = next((tag for tag in tags if tag and not tag.startswith("W/")), "")  # a weak one cannot vouch for equal bytes
        if not resumed:
            marker.unlink(missing_ok=True)
        with part.open("ab" if resumed else "wb") as file:
            if tag:
                marker.write_text(tag, encoding="utf-8")
            for block in _blocks(answer):
                file.write(block)
                done += len(block)
                if total is not None:
                    report(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise _Interrupted(f"{done} of {total} bytes arrived")


def _had_arrived(part: Path, error: HTTPError) -> bool:
    """Whether ``part`` is the whole file: a server says so when asked for what follows it. If not, the next attempt starts anew."""
    if part.is_file() and error.headers.get("Content-Range") == f"bytes */{part.stat().st_size}":
        return True
    _marker(part).unlink(missing_ok=True)
    return False


def _ask(request: Request) -> Any:
    """The server's answer. Raises `HTTPError` for a refusal and `_Interrupted` where none comes."""
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        raise _Interrupted(_reason(error)) from error


def _blocks(answer: BinaryIO) -> Iterator[bytes]:
    try:
        while block := answer.read(BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise _Interrupted(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Of a connection that failed; urllib wraps it in one whose text is a repr."""
    return str(getattr(error, "reason", error)) or type(error).__name__


def _marker(part: Path) -> Path:
    """Holds what identifies the server's file that ``part`` is the beginning of."""
    return part.with_name(f"{part.name}.tag")


def _check(path: Path, sha256: str | None, md5: str | None) -> None:
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is None:
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, name).hexdigest()
        if digest != expected:
            raise WeightsError(
                f"{path.name} ({path.stat().st_size} bytes) has {name} {digest}, expected {expected}: it is damaged or another "
                f"file. Delete {path} if it is there, and fetch it again."
            )
