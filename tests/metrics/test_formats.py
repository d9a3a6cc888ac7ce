"""Good pixels are read whatever else the file carries, and what is no image is named without addresses."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from iec.errors import MetricError
from iec.metrics.images import decode as module
from iec.metrics.images.decode import DamagedImageError, Preprocess, decode
from iec.metrics.images.formats import without_metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def written(suffix, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format=suffix, **options)
    return buffer.getvalue()


def decoded(data):
    return decode(data, "x.png", Preprocess())


def with_text(kind):
    info = PngImagePlugin.PngInfo()
    (info.add_itxt if kind == "iTXt" else info.add_text)("workflow", "x" * 2**21, zip=kind != "tEXt")
    return written("png", pnginfo=info)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "data",
    [
        *(with_text(kind) for kind in ("tEXt", "zTXt", "iTXt")),
        written("png", icc_profile=bytes(2**21)),
        written("png", exif=b"Exif\0\0" + bytes(2**21)),
        written("png")[:-12] + chunk(b"zTXt", b"late\0\0" + zlib.compress(bytes(2**21))) + written("png")[-12:],
        written("png")[:33] + chunk(b"zTXt", b"broken\0\0" + b"no zlib") + written("png")[33:],
    ],
    ids=["tEXt", "zTXt", "iTXt", "iCCP", "eXIf", "after the pixels", "broken text"],
)
def test_a_png_is_read_whatever_it_says_beside_its_pixels(data):
    assert np.array_equal(decoded(data), PIXELS)


@pytest.mark.parametrize("suffix", ["jpeg", "webp"])
def test_metadata_of_the_other_formats_changes_nothing(suffix):
    options = {"quality": 90, **({"comment": b"x" * 65000} if suffix == "jpeg" else {})}
    exif = b"Exif\0\0" + bytes(60000 if suffix == "jpeg" else 2**21)
    laden = written(suffix, icc_profile=bytes(2**20), exif=exif, **options)
    assert len(laden) > 2**20 and np.array_equal(decoded(laden), decoded(written(suffix, quality=90)))


def test_transparency_is_no_metadata():
    with pytest.raises(MetricError, match="has transparency"):
        decoded(written("png", transparency=(0, 0, 0)))
    assert without_metadata(written("png")) == written("png")


@pytest.mark.parametrize(("suffix", "pillows_limit"), [("png", 100), ("jpeg", 100), ("webp", 200)])
def test_large_images_are_read_without_a_word_up_to_a_limit(monkeypatch, suffix, pillows_limit):
    """Pillow's `open` warns above its limit and refuses above twice that."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(written(suffix)).shape == (16, 16, 3)
    monkeypatch.setattr(module, "MOST_PIXELS", 255)
    with pytest.raises(MetricError, match=r"x.png has too many pixels \(16 x 16\)") as error:
        decoded(written(suffix))
    assert not isinstance(error.value, DamagedImageError)


def test_a_webp_above_pillows_limit_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(MetricError, match="x.png has too many pixels") as error:
        decoded(written("webp"))
    assert not isinstance(error.value, DamagedImageError)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0\5\x16\7" + bytes(90), "it begins with the bytes 00 05 16 07 00 00 00 00"),
        (b"GIF89a" + bytes(90), "it begins with the bytes 47 49 46"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer: git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (written("png")[:60], "damaged"),
        (written("jpeg")[:30], "damaged"),
        (written("webp")[:30], "damaged"),
        (b"RIFF" + bytes(4) + b"WEBP" + bytes(50), "damaged"),
        (b"\xff\xd8\xff" + bytes(50), "damaged"),
    ],
)
def test_what_is_no_image_is_said_in_the_same_words_every_time(data, reason):
    messages = set()
    for _ in range(2):
        with pytest.raises(DamagedImageError, match=reason) as error:
            decoded(data)
        messages.add(str(error.value))
    assert len(messages) == 1 and "0x" not in messages.pop().replace("x.png", "")
