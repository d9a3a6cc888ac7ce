"""The three formats that are read, told by their first bytes, and opened for their pixels alone.

`PIL.Image.open` refuses good pixels for what else a file carries: a PNG with more than 1 MiB of text (as ComfyUI writes), or an
image of more than 179 million pixels. So a PNG's metadata is left out before Pillow sees it, and its classes of files are used.
"""

import io

from PIL.Image import Image
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

PNG, JPEG, RIFF, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"WEBP"
LFS = b"version https://git-lfs"
METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
"""Chunks of a PNG that its pixels, as stored, do not depend on."""


def open_image(data: bytes) -> Image:
    """Its size and mode are known, its pixels not yet decoded. Raises `ValueError` for no such file, and what Pillow raises for a
    damaged one."""
    if data.startswith(PNG):
        return PngImageFile(io.BytesIO(without_metadata(data)))
    if data.startswith(JPEG):
        return jpeg_factory(io.BytesIO(data))
    if data.startswith(RIFF) and data[8:12] == WEBP:
        return WebPImageFile(io.BytesIO(data))
    if data.startswith(LFS):
        raise ValueError("a Git LFS pointer: git lfs pull fetches the file")
    raise ValueError(f"it begins with the bytes {data[:8].hex(' ')}" if data else "the file is empty")


def without_metadata(data: bytes) -> bytes:
    """A PNG without its `METADATA`. What cannot be cut into chunks stays as it is, for the decoder to judge."""
    kept, start = [data[: len(PNG)]], len(PNG)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")  # length, type, content, checksum
        if data[start + 4 : start + 8] not in METADATA:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)
