"""Files that are not what their name says, told by their first bytes: so that a message names the mistake and not a damage."""

import zipfile
from pathlib import Path

HEAD = 512
GET = "Download the file itself: the link that gave this leads to a page about it, or needs a login."
LFS = "Run  git lfs pull  in its clone, or download the file itself."
UNPACK = "Unpack it, and give the file that is in it."
BEGINNINGS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", LFS),
    (b"<!doctype html", "a web page (HTML)", GET),
    (b"<html", "a web page (HTML)", GET),
    (b"<?xml", "an XML document", GET),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"bzh", "a bzip2 archive", UNPACK),
    (b"\xfd7zxz\x00", "an xz archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"rar!", "a rar archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
)
"""First bytes in lower case, what has them, what to do."""
TAR = 257, b"ustar"
"""Where a tar archive says so."""


def mistaken(path: Path) -> str | None:
    """A sentence on what stands in place of the file, with the way out; None if it is none of the known mistakes.

    Known are Git LFS pointers, web pages, and archives around the file; a zip archive counts if it holds no checkpoint of torch.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, kind, way_out in BEGINNINGS:
        if start.startswith(beginning):
            return _sentence(path, kind, way_out)
    if head[TAR[0] :].startswith(TAR[1]):
        return _sentence(path, "a tar archive", UNPACK)
    return _other_zip(path) if head.startswith(b"PK\x03\x04") else None


def is_safetensors(path: Path) -> bool:
    """Whether it begins as a safetensors file: the length of a header that fits into it, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size


def _other_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, RuntimeError):  # whoever reads it says that it is damaged
        return None
    if not names or any(name.endswith("/data.pkl") or "/data/" in name for name in names):
        return None
    more = ", ..." if len(names) > 3 else ""
    return _sentence(path, f"a zip archive of {', '.join(names[:3])}{more}", UNPACK)


def _sentence(path: Path, kind: str, way_out: str) -> str:
    return f"{path} ({path.stat().st_size} bytes) is {kind}, not what it is called. {way_out}"
