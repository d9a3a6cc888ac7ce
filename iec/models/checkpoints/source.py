"""The file that is converted: what it must be, what it is, and the checkpoint inside an archive."""

import hashlib
import logging
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from iec.errors import WeightsError
from iec.io.download import fetch
from iec.models.cards import Original
from iec.models.checkpoints.reader import refuse_others

BLOCK = 2**22
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fingerprint:
    """Of a file; size in bytes."""

    file: str
    size: int
    sha256: str
    md5: str


def fingerprint(path: Path) -> Fingerprint:
    """Both hashes in one pass. Raises `WeightsError` for a file that cannot be read."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                sha256.update(block)
                md5.update(block)
                size += len(block)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}. Give an existing file.") from error
    return Fingerprint(path.name, size, sha256.hexdigest(), md5.hexdigest())


def holds_member(original: Original, path: Path) -> bool:
    """Whether ``path`` is the archive around the checkpoint, and not the checkpoint itself."""
    if original.member is None or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return original.member in archive.namelist()
    except (zipfile.BadZipFile, ValueError, RuntimeError):  # whoever opens it as a checkpoint says so
        return False


def take_member(original: Original, path: Path, folder: Path) -> Path:
    """The checkpoint itself: ``path``, or what the archive holds, unpacked below ``folder``. Raises `WeightsError` for a path
    that is no file and for a damaged archive.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is no file. Give the checkpoint, or leave --checkpoint out to download it.")
    if not holds_member(original, path):
        return path
    assert original.member is not None  # holds_member
    target = folder / path.name / Path(original.member).name
    target.parent.mkdir()
    log.info("unpacking %s", original.member)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(original.member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, BLOCK)
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes): {original.member} inside is damaged ({error}). Fetch it again."
        ) from error
    return target


def check(original: Original, path: Path) -> Fingerprint:
    """The checkpoint's fingerprint, compared with the card's. Raises `WeightsError`."""
    refuse_others(path)
    size = path.stat().st_size
    if original.size not in (None, size):
        raise WeightsError(f"{path} has {size} bytes, not {original.size}: it is truncated or another file. Fetch it again.")
    log.info("hashing %s (%.2f GB)", path, size / 1e9)
    actual = fingerprint(path)
    for kind in ("sha256", "md5"):
        expected_value, value = getattr(original, kind), getattr(actual, kind)
        if expected_value not in (None, value):
            raise WeightsError(
                f"{path} ({size} bytes) has {kind} {value}, not {expected_value}: it is truncated or another file. Fetch it again."
            )
    return actual


def expected(original: Original) -> str:
    """What to fetch, for error messages."""
    values = {"bytes": original.size, "sha256": original.sha256, "md5": original.md5}
    known = ", ".join(f"{kind} {value}" for kind, value in values.items() if value is not None)
    return f"Expected: {original.file} from {original.url} ({known or 'its hash is not known to us'})."


def download(source: Original, folder: Path) -> Path:
    """A model's original file (or the archive around it) in ``folder``, downloaded unless it is there. Raises `WeightsError`."""
    name = Path(urlsplit(source.url).path).name if source.member else Path(source.file).name
    hashes = (None, None) if source.member else (source.sha256, source.md5)  # they are the checkpoint's, not the archive's
    return fetch(source.url, folder / name, sha256=hashes[0], md5=hashes[1])
