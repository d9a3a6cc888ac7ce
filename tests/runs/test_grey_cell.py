"""The bundled grey model from end to end: a cell of 4 images with its scores, picture, sprite and exports."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import iec
from iec.io.images import grid, to_uint8
from iec.metrics.__main__ import open_images
from iec.metrics.extractors.features import extract
from iec.metrics.images.export import export_npz, export_pngs
from iec.metrics.images.sources import Tally
from iec.metrics.protocol import protocol
from iec.metrics.references.reference import load_reference, reference_path
from iec.report.pictures import GAP, sprite_of
from iec.runs.run import show
from iec.runs.runner import run_cell
from iec.tables.plots import sample_grid
from iec.tables.rows import build_rows

pytestmark = pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")


@pytest.fixture(scope="module")
def results(tmp_path_factory, make_cell):
    """Without a correction, scored, and with one."""
    common = ["model=ddim_fashion_small", "num_images=4", "batch_size=4", "sampler.steps=3"]
    common.append(f"paths.output={tmp_path_factory.mktemp('out')}")
    return {
        "none": run_cell(make_cell(*common, "metrics.bootstrap=0")),
        "all_steps": run_cell(make_cell(*common, "iec=all_steps", "metrics=none")),
    }


def pixels(uri):
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def test_shards_hold_the_last_states_in_one_channel(results):
    result = results["all_steps"]
    images = result.first_images(4)
    assert images.shape == (4, 32, 32, 1) and images.dtype == np.uint8
    with np.load(next((result.cell.folder / "traces").glob("*.npz"))) as file:
        states = next(value for value in file.values() if value.ndim == 5)
    assert np.array_equal(to_uint8(torch.from_numpy(states[-1])), images)
    assert not np.array_equal(images, results["none"].first_images(4))  # the correction acts


def test_scores_without_an_interval_are_shown_without_one(results, caplog):
    with caplog.at_level("INFO"):
        show(results["none"])
    assert "FID (EffNet-Lite0) = " in caplog.text and "nan" not in caplog.text and "[" not in caplog.messages[-1]


def test_the_library_samples_the_same_images(results):
    model = iec.load_model("ddim_fashion_small", device="cpu")
    assert np.array_equal(iec.sample(model, 4, steps=3, batch_size=4).images, results["none"].first_images(4))


def test_scores_are_those_of_the_exported_images(results, tmp_path):
    result = results["none"]
    assert result.record.n == 4 and list(result.record.scores) == ["fid", "kid", "is", "sfid"]
    source = open_images(result.cell.folder)
    export_pngs(source, tmp_path / "pngs", lambda done, total: None)
    export_npz(source, tmp_path / "x.npz", lambda done, total: None)
    tally = Tally()
    folder = np.concatenate(list(tally.of(open_images(tmp_path / "pngs").blocks())))
    assert np.array_equal(folder, result.first_images(4)) and tally.sha256 == result.manifest.hash
    three = np.concatenate(list(open_images(tmp_path / "x.npz").blocks()))
    assert np.array_equal(three, folder.repeat(3, axis=3))


def test_the_head_scores_the_same_images_and_stands_beside(results):
    """As each protocol does alone."""
    result = results["none"]
    assert [record.protocol for record in result.records] == ["efficientnet_lite0", "efficientnet_lite0_deep"]
    for record in result.records:
        rules = protocol(record.protocol)
        extractor = rules.extractor("cpu")
        reference = load_reference(reference_path("fashion_mnist_train", extractor), extractor, 32)
        features = extract(result.first_images(4), extractor)
        alone = rules.score(features, reference, list(record.scores), bootstrap=0)
        assert {name: score.value for name, score in alone.items()} == {n: s.value for n, s in record.scores.items()}
    labels = [score.label for score in result.scores]
    assert labels[:3] == ["FID (EffNet-Lite0)", "FID (EffNet-Lite0 head)", "KID (EffNet-Lite0)"] and not result.lacking


def test_pictures_show_the_pixels_in_grey(results, tmp_path):
    result = results["none"]
    with Image.open(result.cell.folder / "grid.png") as image:
        assert np.array_equal(np.asarray(image), grid(result.first_images(4), columns=8, scale=2))
    rows = build_rows({"plain": result, "IEC": results["all_steps"]}, {})
    assert np.array_equal(pixels(sprite_of(rows[0]).uri), grid(result.first_images(4), columns=2, gap=GAP))
    sample_grid(tmp_path / "samples.png", {"plain": result.first_images(4)}, "grey")
    with Image.open(tmp_path / "samples.png") as image:
        assert np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).max() == 0  # no colour map


def test_costs_are_of_one_channel(results):
    convolution = results["none"].cell.model.skeleton().conv_in
    assert convolution.in_channels == 1 and results["none"].cost.full.macs == 311_062_528
