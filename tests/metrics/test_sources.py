import hashlib
import io
import json
import os
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from iec.errors import ConfigError, MetricError, StoreError
from iec.metrics.images.decode import DamagedImageError, Preprocess, decode
from iec.metrics.images.encoded import in_order, open_folder
from iec.metrics.images.npz import ImageArray
from iec.metrics.images.sources import ArraySource, NpzSource, Tally, first
from iec.runs.batches import Samples
from iec.runs.cell_images import CellSource
from iec.runs.store import Store
from iec.sampling.network import Calls


@pytest.fixture(scope="module")
def images():
    """More than two blocks, so that blocks, shards and reads do not line up."""
    return np.random.default_rng(1).integers(0, 256, (123, 8, 8, 3), dtype=np.uint8)


def write_folder(folder, images, suffix="png", mode="RGB"):
    folder.mkdir(exist_ok=True)
    for k, image in enumerate(images):
        Image.fromarray(image.squeeze()).convert(mode).save(folder / f"{k:04d}.{suffix}")
    return folder


def write_cell(folder, images, size=32):
    store = Store.open(folder, {"seed": 3})
    for k in range(0, len(images), size):
        part = images[k : k + size]
        whole = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])  # a shard is computed whole
        samples = Samples(whole, np.zeros((2, 0, 3, 8, 8), np.float32), Calls(), 1.0)
        store.write(tuple(range(k, k + size)), samples, len(part), "here")
    store.write_manifest([tuple(range(k, k + size)) for k in range(0, len(images), size)], len(images))
    return folder


def every_kind(folder, images):
    np.savez(folder / "plain.npz", images)
    np.savez_compressed(folder / "small.npz", arr_0=images, arr_1=np.arange(len(images)))
    return {
        "array": ArraySource(images, "array"),
        "folder": open_folder(write_folder(folder / "pngs", images, mode="RGB" if images.shape[3] == 3 else "L")),
        "npz": NpzSource(ImageArray.open(folder / "plain.npz")),
        "compressed npz": NpzSource(ImageArray.open(folder / "small.npz")),
        "cell": CellSource.open(write_cell(folder / "cell", images)),
    }


def joined(blocks):
    return np.concatenate(list(blocks))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_gives_the_same_blocks_and_hash(tmp_path, images, channels):
    images = images[..., :channels]
    for kind, source in every_kind(tmp_path, images).items():
        tally = Tally()
        got = joined(tally.of(source.blocks()))
        assert got.dtype == np.uint8 and np.array_equal(got, images), kind
        assert (len(source), source.resolution, source.channels, tally.count) == (123, 8, channels, 123), kind
        assert tally.sha256 == hashlib.sha256(images.tobytes()).hexdigest(), kind
        assert max(len(block) for block in source.blocks()) <= 50, kind
        for start, stop in ((0, 1), (49, 51), (31, 97), (100, 123), (122, 123)):
            assert np.array_equal(joined(source.blocks(start, stop)), images[start:stop]), (kind, start, stop)


def test_the_hash_is_the_one_in_a_cells_manifest(tmp_path, images):
    store = Store(write_cell(tmp_path / "cell", images[:64]))
    manifest = store.write_manifest([tuple(range(32)), tuple(range(32, 64))], 64)
    tally = Tally()
    list(tally.of(CellSource.open(store.folder).blocks()))
    assert tally.sha256 == manifest.hash


def test_first_reads_no_further(images):
    read = []

    def blocks():
        for k in range(0, 123, 10):
            read.append(k)
            yield images[k : k + 10]

    assert np.array_equal(joined(first(blocks(), 25)), images[:25]) and read == [0, 10, 20]


def test_formats_and_order(tmp_path, images):
    for name, image in zip(("b.png", "a.JPEG", "10.webp", "2.png"), images, strict=False):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub").mkdir()
    Image.fromarray(images[9]).save(tmp_path / "sub/0.png")
    assert open_folder(tmp_path).names == ["10.webp", "2.png", "a.JPEG", "b.png"]
    assert open_folder(tmp_path, recursive=True).names == ["10.webp", "2.png", "a.JPEG", "b.png", "sub/0.png"]
    assert np.array_equal(joined(open_folder(tmp_path).blocks(1, 2)), images[3:4])
    with Image.open(tmp_path / "a.JPEG") as jpeg:
        assert np.array_equal(joined(open_folder(tmp_path).blocks(2, 3))[0], np.asarray(jpeg))


def test_empty_folders(tmp_path, images):
    with pytest.raises(MetricError, match="is not a folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(MetricError, match="holds no PNG, JPEG or WebP files; give another"):
        open_folder(tmp_path)
    write_folder(tmp_path / "sub", images[:3])
    with pytest.raises(MetricError, match="but 3 in sub-folders: pass --recursive"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Image.new("L", (8, 8)).save(p), "bad.png is grey, not 8-bit RGB"),
        (lambda p: Image.new("1", (8, 8)).save(p), "bad.png is black and white"),
        (lambda p: Image.new("P", (8, 8)).save(p), "bad.png is a palette image"),
        (lambda p: Image.new("RGBA", (8, 8)).save(p), "bad.png has transparency"),
        (lambda p: Image.new("LA", (8, 8)).save(p), "bad.png has transparency"),
        (lambda p: Image.new("RGB", (8, 8)).save(p, transparency=(0, 0, 0)), "bad.png has transparency"),
        (lambda p: Image.new("I;16", (8, 8)).save(p), "bad.png has 16 bits"),
        (lambda p: p.write_bytes(png_16_bit_rgb()), "bad.png has 16 bits"),
        (lambda p: Image.new("CMYK", (8, 8)).save(p, format="JPEG"), "bad.png is CMYK"),
        (lambda p: Image.new("RGB", (8, 9)).save(p), "bad.png is 8 x 9 pixels, not square"),
        (lambda p: Image.new("RGB", (9, 9)).save(p), "bad.png is 9 pixels wide, those before it 8"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_images_that_do_not_fit_are_refused_by_name(tmp_path, images, make, message, skip):
    """Also with --skip-damaged: they are not damaged."""
    write_folder(tmp_path, images[:2])
    make(tmp_path / "bad.png")
    with pytest.raises(MetricError, match=message):
        list(open_folder(tmp_path, skip_damaged=skip).blocks(skipped=[] if skip else None))


def png_16_bit_rgb():
    """Pillow does not write such a file, and would read it as 8 bits."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x12\x34" * 24 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_grey_among_rgb_is_refused_until_it_is_converted(tmp_path, images):
    write_folder(tmp_path, images[:2], mode="L")
    Image.fromarray(images[2]).save(tmp_path / "rgb.png")
    assert next(open_folder(tmp_path).blocks(0, 2)).shape == (2, 8, 8, 1)
    with pytest.raises(MetricError, match=r"rgb.png is RGB, not grey; convert .*iec.metrics.references --to-rgb"):
        list(open_folder(tmp_path).blocks())
    converted = joined(open_folder(tmp_path, preprocess=Preprocess(to_rgb=True)).blocks())
    assert converted.shape == (3, 8, 8, 3) and (converted[:2] == converted[:2, :, :, :1]).all()
    assert np.array_equal(converted[2], images[2])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_every_truncation_is_noticed_or_harmless(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format={"jpg": "JPEG"}.get(suffix, suffix))
    data, noticed = buffer.getvalue(), 0
    whole = decode(data, "x", Preprocess())
    for keep in range(0, len(data), 3):
        try:
            assert np.array_equal(decode(data[:keep], "x", Preprocess()), whole), keep  # only the end marker is gone
        except DamagedImageError:
            noticed += 1
    assert noticed > 0.9 * len(data) / 3


def test_damaged_files_are_named_or_skipped_and_counted(tmp_path, images):
    folder = write_folder(tmp_path, images[:60])
    for name, data in {"0000.png": b"", "0007.png": b"text", "0055.png": (folder / "0055.png").read_bytes()[:90]}.items():
        (folder / name).write_bytes(data)
    with pytest.raises(DamagedImageError, match=r"0000.png is damaged.*--skip-damaged"):
        open_folder(folder)
    source, skipped = open_folder(folder, skip_damaged=True), []
    got = joined(source.blocks(skipped=skipped))
    assert skipped == ["0000.png", "0007.png", "0055.png"] and len(source) == 60
    assert np.array_equal(got, np.delete(images[:60], [0, 7, 55], axis=0))
    with pytest.raises(DamagedImageError, match="0000.png"):
        list(source.blocks())
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(MetricError, match="none of 60"):
        open_folder(folder, skip_damaged=True)


def test_a_file_that_vanishes_is_not_taken_for_damage(tmp_path, images):
    source = open_folder(write_folder(tmp_path, images[:3]))
    (tmp_path / "0001.png").unlink()
    with pytest.raises(MetricError, match="0001.png cannot be read"):
        list(source.blocks(skipped=[]))


def test_a_link_to_nothing_is_damage_and_has_a_state(tmp_path, images):
    folder = write_folder(tmp_path / "pngs", images[:3])
    whole = open_folder(folder).state
    (folder / "0001a.png").symlink_to(tmp_path / "gone.png")
    (folder / "0002a.png").symlink_to("0002a.png")
    source, skipped = open_folder(folder, skip_damaged=True), []
    assert np.array_equal(joined(source.blocks(skipped=skipped)), images[:3])
    assert skipped == ["0001a.png", "0002a.png"] and source.state != whole
    with pytest.raises(DamagedImageError, match=r"0001a.png is a link to .*gone.png, which is not there.*--skip-damaged"):
        list(source.blocks())
    (folder / "0002.png").unlink()
    with pytest.raises(MetricError, match=r"0002.png cannot be read: No such file"):
        source.state  # noqa: B018  # computed


def test_linked_class_folders_are_scored_and_copies_of_editors_are_not(tmp_path, images):
    folder = write_folder(tmp_path / "pngs", images[:3])
    write_folder(folder / ".ipynb_checkpoints", images[:3])
    (folder / "._0000.png").write_bytes(b"\0\5\x16\7")
    (folder / "more").symlink_to(write_folder(tmp_path / "elsewhere", images[3:5], suffix="PNG"), target_is_directory=True)
    assert np.array_equal(joined(open_folder(folder, recursive=True).blocks()), images[:5])
    assert np.array_equal(joined(open_folder(folder).blocks()), images[:3])


def test_state_follows_the_files(tmp_path, images):
    source = open_folder(write_folder(tmp_path, images[:3]))
    before = source.state
    assert open_folder(tmp_path).state == before
    os.utime(tmp_path / "0001.png", ns=(1, 1))
    assert open_folder(tmp_path).state != before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds no images: there is no arr_0 among mu"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, r"float64 \[2, 8, 8, 3\]"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"uint8 \[2, 3, 8, 8\]"),
        ({"arr_0": np.zeros((2, 8, 9, 3), np.uint8)}, "square"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"\[0, 8, 8, 3\]"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))}, "by columns"),
    ],
)
def test_npz_of_something_else(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(MetricError, match=message):
        ImageArray.open(tmp_path / "x.npz")


def test_truncated_npz(tmp_path, images):
    with pytest.raises(MetricError, match="missing"):
        ImageArray.open(tmp_path / "x.npz")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", images)
        data = (tmp_path / "x.npz").read_bytes()
        for keep in (0, 10, len(data) // 2, len(data) - 1):
            (tmp_path / "x.npz").write_bytes(data[:keep])
            with pytest.raises(MetricError, match="truncated"):
                ImageArray.open(tmp_path / "x.npz")
    first = len("arr_0.npy") + 30 + 20  # behind the member's header, where the compressed data begin
    (tmp_path / "x.npz").write_bytes(data[:first] + bytes([data[first] ^ 0xFF]) + data[first + 1 :])
    with pytest.raises(MetricError, match="missing, truncated or no npz|is damaged"):
        list(NpzSource(ImageArray.open(tmp_path / "x.npz")).blocks())
    middle = len(data) // 2
    (tmp_path / "x.npz").write_bytes(data[:middle] + bytes(50) + data[middle + 50 :])
    with pytest.raises(MetricError, match="is damaged"):
        list(NpzSource(ImageArray.open(tmp_path / "x.npz")).blocks())


def test_a_shape_that_says_more_than_there_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (5, 8, 8, 3)})
        member.write(bytes(3 * 192))
    with pytest.raises(MetricError, match="fewer bytes than its shape"):
        ImageArray.open(tmp_path / "x.npz")


def test_unfinished_and_damaged_cells(tmp_path, images):
    with pytest.raises(StoreError, match="no finished shards"):
        CellSource.open(tmp_path)
    cell = write_cell(tmp_path / "cell", images)
    shard = cell / "shards/000032-000063.npz"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(StoreError, match="000032-000063.npz is damaged"):
        list(CellSource.open(cell).blocks())
    shard.write_bytes(data)
    assert len(joined(CellSource.open(cell).blocks())) == 123
    (cell / "manifest.json").rename(tmp_path / "held")
    with pytest.raises(StoreError, match=r"not finished: it has no usable manifest.json. Run the cell again"):
        CellSource.open(cell)
    (tmp_path / "held").rename(cell / "manifest.json")
    (cell / "shards/._000000-000031.json").write_bytes(b"\0\5\x16\7")  # of macOS
    assert len(CellSource.open(cell)) == 123
    for record in ("{}", "[]", '{"count": 32}', '{"count": "32", "sha256": ""}'):
        shard.with_suffix(".json").write_text(record)
        with pytest.raises(StoreError, match="image 32 is missing"):
            CellSource.open(cell)
    shard.with_suffix(".json").unlink()
    with pytest.raises(StoreError, match="image 32 is missing"):
        CellSource.open(cell)


def test_in_order_is_ordered_bounded_and_stops_at_an_error():
    started, lock = [], threading.Lock()

    def slow(k):
        with lock:
            started.append(k)
        time.sleep(0.02 if k % 3 == 0 else 0)
        if k == 17:
            raise MetricError("17")
        return k

    with ThreadPoolExecutor(4) as pool:
        results = in_order(pool, slow, range(1000), ahead=5)
        got = [next(results) for _ in range(10)]
        assert got == list(range(10)) and max(started) <= 10 + 5
        with pytest.raises(MetricError, match="17"):
            list(results)
    assert max(started) <= 17 + 5 + 1


def photo(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box", "nearest"])
@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (20, 30), (12, 10)])
def test_resize_and_crop_are_torchvisions(name, size):
    """Where its rounding of the long side and of the crop is exact."""
    from torchvision.transforms import v2

    modes = {"box": "box", "nearest": "nearest-exact"}
    expected = v2.Compose([v2.Resize(20, v2.InterpolationMode(modes.get(name, name))), v2.CenterCrop(20)])(photo(*size))
    got = Preprocess(20, name)(photo(*size))
    assert np.array_equal(np.asarray(got), np.asarray(expected))


def test_adm_halves_by_boxes_first():
    image = photo(100, 85)
    halved = image.resize((50, 42), Image.Resampling.BOX).resize((25, 21), Image.Resampling.BOX)
    expected = halved.resize((24, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(Preprocess(20, "adm")(image)), np.asarray(expected.crop((2, 0, 22, 20))))


def test_cropping_first(tmp_path):
    image = photo(61, 40)
    expected = image.crop((10, 0, 50, 40)).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(Preprocess(20, "bicubic", crop_first=True)(image)), np.asarray(expected))


def test_the_record_says_what_was_done():
    assert str(Preprocess()) == "as stored; RGB as stored"
    assert str(Preprocess(64, "adm")) == "shorter side to 64, Pillow adm (antialias), centre crop; RGB as stored"
    text = "centre crop, shorter side to 64, Pillow nearest (no antialias); grey, palette and CMYK converted to RGB"
    assert str(Preprocess(64, "nearest", crop_first=True, to_rgb=True)) == text
    with pytest.raises(ConfigError, match="choose one of nearest, box"):
        Preprocess(64, "bilnear")
    with pytest.raises(ConfigError, match="at least 2"):
        Preprocess(0)


def test_real_images_of_many_sizes_and_modes(tmp_path):
    photo(30, 40).save(tmp_path / "a.png")
    photo(25, 20).convert("L").save(tmp_path / "b.jpg")
    photo(25, 22).convert("CMYK").save(tmp_path / "c.jpg")
    photo(25, 22).convert("P").save(tmp_path / "d.png")
    source = open_folder(tmp_path, preprocess=Preprocess(16, "box", to_rgb=True))
    assert joined_any(source).shape == (4, 16, 16, 3) and source.resolution == 16
    photo(25, 22).convert("RGBA").save(tmp_path / "e.png")
    with pytest.raises(MetricError, match="e.png has transparency"):
        joined_any(open_folder(tmp_path, preprocess=Preprocess(16, "box", to_rgb=True)))
    with pytest.raises(MetricError, match="b.jpg is grey, not 8-bit RGB; convert"):
        joined_any(open_folder(tmp_path, preprocess=Preprocess(16, "box")))


def joined_any(source):
    return np.concatenate(list(source.blocks()))


def test_cell_record_is_plain_json(tmp_path, images):
    """What `CellSource` relies on."""
    commit = json.loads((write_cell(tmp_path / "cell", images[:40]) / "shards/000032-000063.json").read_text())
    assert commit["count"] == 8 and len(commit["sha256"]) == 64
