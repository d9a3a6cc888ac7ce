import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iec.errors import MetricError, StoreError
from iec.metrics.images.encoded import open_folder
from iec.metrics.images.export import export_npz, export_pngs
from iec.metrics.images.npz import ImageArray
from iec.metrics.images.sources import ArraySource, NpzSource
from tests.metrics.test_sources import write_cell

SCRIPT = Path(__file__).parents[2] / "scripts/export_images.py"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def source(images):
    return ArraySource(images, "array")


def quiet(done, total):
    pass


def test_npz_is_what_numpy_writes(tmp_path, images, source):
    labels, seen = np.arange(70) // 7, []
    export_npz(source, tmp_path / "x.npz", lambda done, total: seen.append((done, total)), labels)
    with np.load(tmp_path / "x.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
        assert file["arr_0"].dtype == np.uint8 and np.array_equal(file["arr_0"], images)
        assert file["arr_1"].dtype == np.int64 and np.array_equal(file["arr_1"], labels)
    assert seen == [(50, 70), (70, 70)]
    assert np.array_equal(np.concatenate(list(NpzSource(ImageArray.open(tmp_path / "x.npz")).blocks())), images)


def test_npz_without_labels_and_the_same_bytes_again(tmp_path, source):
    for name in ("a.npz", "b.npz"):
        export_npz(source, tmp_path / name, quiet)
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"]
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)  # not of today


def test_a_failed_export_leaves_nothing(tmp_path, images):
    class Short(ArraySource):
        def __len__(self):
            return 71

    with pytest.raises(MetricError, match="the source changed"):
        export_npz(Short(images, "short"), tmp_path / "x.npz", quiet)
    with pytest.raises(MetricError, match="3 labels for 70 images"):
        export_npz(ArraySource(images, "array"), tmp_path / "x.npz", quiet, np.arange(3))
    assert not list(tmp_path.iterdir())


def test_pngs_come_back_the_same(tmp_path, images, source):
    export_pngs(source, tmp_path / "pngs", quiet)
    folder = open_folder(tmp_path / "pngs")
    assert folder.names[0] == "000000.png" and folder.names[-1] == "000069.png"
    assert np.array_equal(np.concatenate(list(folder.blocks())), images)


def test_grey_images_are_grey_files_and_rgb_where_readers_want_three_channels(tmp_path, images):
    grey = images[..., :1]
    export_pngs(ArraySource(grey, "grey"), tmp_path / "pngs", quiet)
    with Image.open(tmp_path / "pngs/000003.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image.convert("RGB")), grey[3].repeat(3, axis=2))  # as other evaluators read it
    assert np.array_equal(np.concatenate(list(open_folder(tmp_path / "pngs").blocks())), grey)
    export_npz(ArraySource(grey, "grey"), tmp_path / "x.npz", quiet)
    with np.load(tmp_path / "x.npz") as file:
        assert np.array_equal(file["arr_0"], grey.repeat(3, axis=3))


def test_pngs_do_not_join_other_images(tmp_path, images, source):
    """50 images exported over 70 would leave a folder of 70, which other tools score whole."""
    export_pngs(source, tmp_path, quiet)
    (tmp_path / "notes.txt").write_text("not an image")
    export_pngs(source, tmp_path, quiet)  # again, after an interruption say
    with pytest.raises(MetricError, match=r"20 other images \(000050.png, ...\). Delete them"):
        export_pngs(ArraySource(images[:50], "fewer"), tmp_path, quiet)


def test_the_script(tmp_path, images, monkeypatch):
    cell = write_cell(tmp_path / "cell", images[:40])
    for output in ("pngs", "x.npz", "CAPITALS.NPZ"):
        monkeypatch.setattr(sys, "argv", ["export_images.py", str(cell), str(tmp_path / output)])
        runpy.run_path(str(SCRIPT))["main"]()
    for name in ("x.npz", "CAPITALS.NPZ"):
        with np.load(tmp_path / name) as file:
            assert np.array_equal(file["arr_0"], images[:40])
    with Image.open(tmp_path / "pngs/000039.png") as image:
        assert np.array_equal(np.asarray(image), images[39])


@pytest.mark.parametrize("output", ["folder.npz", "file", "file/x.npz"])
def test_an_output_that_cannot_be_written_is_known_before_any_image_is_read(tmp_path, images, monkeypatch, output):
    cell = write_cell(tmp_path / "cell", images[:40])
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("iec.runs.cell_images.CellSource.blocks", lambda *_: pytest.fail("images were read"))
    monkeypatch.setattr(sys, "argv", ["export_images.py", str(cell), str(tmp_path / output)])
    with pytest.raises(StoreError, match="Choose another path: export_images.py CELL OUTPUT"):
        runpy.run_path(str(SCRIPT))["main"]()
