import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iec.errors import ArtifactError, ConfigError, DatasetError, IECError, MetricError, StoreError
from iec.metrics import __main__ as cli
from iec.metrics.extractors.features import extract
from iec.metrics.protocol import PROTOCOLS
from iec.metrics.references.reference import load_reference
from iec.metrics.scores import score as score_images
from tests.metrics.test_sources import write_cell, write_folder

SCRIPT = Path(__file__).parents[2] / "scripts/prepare_reference.py"
SCORE = ("--reference", "cifar10_train", "--protocol", "efficientnet_lite0", "--beside", "none")

pytestmark = pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")


def score(*words):
    return cli.score(cli.arguments(["score", *map(str, words), "--device", "cpu"]))


def test_the_command_scores_any_kind_of_images_alike(tmp_path, real_images, reference, extractor, capsys):
    """On 50 real images: the values of the library, the same from a folder, an npz and a cell."""
    images = real_images[:50]
    np.savez(tmp_path / "x.npz", images)
    (tmp_path / "x.npz").rename(tmp_path / "X.NPZ")
    places = [write_folder(tmp_path / "pngs", images), tmp_path / "X.NPZ", write_cell(tmp_path / "cell", images)]
    cli.main(["score", str(places[0]), *SCORE, "--json", str(tmp_path / "out.json"), "--bootstrap", "5", "--device", "cpu"])
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "out.json").read_text())
    expected = score_images(images, reference, extractor, bootstrap=5)
    assert list(record["scores"]) == list(expected) == ["fid", "kid", "is", "sfid"]
    for name, value in expected.items():
        assert record["scores"][name]["value"] == value.value and record["scores"][name]["low"] == value.low
        assert f"| {value.label} | {value.value:.6g} | {value.low:.4g} .. {value.high:.4g} | 50 |" in text
    assert json.loads(text[text.index("\n{") :]) == record and "note: 50 images for 112 features" in text
    assert record["reference_hash"] == reference.hash and record["source"]["label"] == "folder pngs" and record["seed"] is None
    for place in places[1:]:
        other = score(place, *SCORE, "--metrics", "is,fid")
        assert list(other["scores"]) == ["is", "fid"] and other["manifest_hash"] == record["manifest_hash"]
        assert all(other["scores"][name]["value"] == expected[name].value for name in ("is", "fid"))
        assert other["scores"]["fid"]["low"] is None
    assert other["seed"] == 3  # a cell knows it


def test_the_head_stands_beside_by_default_and_its_scores_are_its_own(tmp_path, real_images, capsys, monkeypatch):
    images, words = write_folder(tmp_path / "pngs", real_images[:6]), SCORE[:4]
    record = score(images, *words)
    (beside,) = record["beside"]
    assert list(beside["scores"]) == ["fid"] and beside["protocol"] == "efficientnet_lite0_deep"
    own = score(images, *words[:2], "--protocol", "efficientnet_lite0_deep")
    assert beside["scores"] == own["scores"] and own["beside"] == []
    assert "| FID (EffNet-Lite0 head) | " in cli.table(record)
    assert score(images, *SCORE)["scores"] == record["scores"]
    monkeypatch.setattr(cli, "extract_each", lambda *_: pytest.fail("work was done"))
    for names, message in [("vibes", "Unknown metrics 'vibes'"), (words[3], "twice, or efficientnet_lite0 itself")]:
        with pytest.raises(ConfigError, match=message):
            score(images, *words, "--beside", names)


def test_the_first_images_and_damaged_ones(tmp_path, real_images, extractor):
    folder = write_folder(tmp_path / "pngs", real_images[:12])
    (folder / "0003.png").write_bytes(b"")
    with pytest.raises(MetricError, match="0003.png is damaged"):
        score(folder, *SCORE)
    record = score(folder, *SCORE, "--skip-damaged", "--num", "8", "--metrics", "is")
    assert record["n"] == 8 and record["source"] == {
        "label": "folder pngs", "files": 12, "skipped": ["0003.png"], "reference": "CIFAR-10 train"
    }  # fmt: skip
    with pytest.raises(MetricError, match="Only 11 of 12"):
        score(folder, *SCORE, "--skip-damaged", "--num", "12")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "fid,vibes"], "no score 'vibes'"),
        (["--num", "1"], "choose 2 .. 4"),
        (["--num", "5"], "choose 2 .. 4"),
        (["--metrics", "fid_inf"], "4 images are too few for fid_inf"),
        (["--metrics", "recall", "--num", "3"], "3 images are too few for recall"),
        (["--bootstrap", "-1"], "must not be negative"),
        (["--json", "."], "is a folder, not a file to write. Choose another path: --json OUT"),
        (["--json", "/proc/x.json"], "cannot be written.*--json OUT"),
        (["--reference", "nothing"], "neither a file nor one of cifar10_train"),
        (["--reference", "imagenet_256"], "iec.metrics.references --dataset imagenet_256"),
    ],
)
def test_refusals_come_before_the_work(tmp_path, real_images, monkeypatch, words, message):
    monkeypatch.setattr(cli, "extract_each", lambda *_: pytest.fail("work was done"))
    monkeypatch.setenv("IEC_REFERENCES", str(tmp_path))
    with pytest.raises(IECError, match=message):
        score(write_folder(tmp_path / "pngs", real_images[:4]), *SCORE, *words)


def test_another_resolution_is_refused(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(IECError, match="32 x 32 images, not 64 x 64"):
        score(tmp_path, *SCORE)


def test_one_image_is_too_few(tmp_path, real_images):
    with pytest.raises(MetricError, match=r"folder pngs: 1 image\(s\) cannot be scored; use at least 2"):
        score(write_folder(tmp_path / "pngs", real_images[:1]), *SCORE)


def test_protocols_are_one_line_each(capsys):
    cli.main(["protocols"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PROTOCOLS)
    assert all("fid" in line for line in lines)


def prepare(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["prepare_reference.py", *map(str, words), "--device", "cpu"])
    runpy.run_path(str(SCRIPT))["main"]()


def test_prepare_and_score_a_folder(tmp_path, real_images, extractor, monkeypatch):
    """A reference of photographs of several sizes, then scores against it."""
    (tmp_path / "photos").mkdir()
    for k, image in enumerate(real_images[:20]):
        Image.fromarray(image).resize((40 + k, 36)).save(tmp_path / f"photos/{k}.png")
    output = tmp_path / "photos.safetensors"
    prepare(monkeypatch, "--folder", tmp_path / "photos", "--resolution", 32, "--filter", "lanczos", "--output", output)
    reference = load_reference(output, extractor, 32)
    facts = reference.provenance
    assert facts["n"] == 20 and facts["preprocess"].startswith("shorter side to 32, Pillow lanczos (antialias), centre crop")
    assert "--filter lanczos" in facts["command"] and "--output" not in facts["command"] and "--device" not in facts["command"]
    images = write_folder(tmp_path / "pngs", real_images[20:30])
    got = score(images, "--reference", output, "--protocol", "efficientnet_lite0", "--metrics", "fid")
    expected = score_images(extract_input(images), reference, extractor, ["fid"], bootstrap=0)
    assert got["scores"]["fid"]["value"] == expected["fid"].value


def extract_input(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def test_prepare_imports_statistics_for_a_data_set(tmp_path, real_images, extractor, monkeypatch):
    from iec.metrics.references.catalog import ORIGINS

    monkeypatch.setitem(ORIGINS, "pytorch_fid", extractor.name)
    monkeypatch.setenv("IEC_REFERENCES", str(tmp_path))
    features = extract(real_images[:40], extractor)
    np.savez(tmp_path / "x.npz", mu=features.pooled.mean(0), sigma=np.cov(features.pooled, rowvar=False))
    prepare(monkeypatch, "--dataset", "cifar10_train", "--npz", tmp_path / "x.npz", "--origin", "pytorch_fid")
    with pytest.raises(ArtifactError, match="exists. Delete it"):
        prepare(monkeypatch, "--dataset", "cifar10_train", "--npz", tmp_path / "x.npz", "--origin", "pytorch_fid")
    made = load_reference(tmp_path / "cifar10_train.efflite0.safetensors", extractor, 32)
    assert made.pooled.n == 50_000 and made.spatial is None
    words = ("--reference", tmp_path / "x.npz", "--origin", "pytorch_fid", "--protocol", "efficientnet_lite0")
    folder = write_folder(tmp_path / "pngs", real_images[:10])
    record = score(folder, *words)
    assert list(record["scores"]) == ["fid", "is"]  # what the reference has the parts for
    assert record["notes"][-1].startswith("left out: kid, sfid, for which") and "iec.metrics.references" in record["notes"][-1]
    with pytest.raises(ConfigError, match="does not hold what sfid"):
        score(folder, *words, "--metrics", "fid,sfid")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give one of --data, --folder and --npz, got none"),
        (["--data", "a", "--npz", "b"], "got --data, --npz"),
        (["--folder", "a"], "Give --output"),
        (["--folder", "a", "--dataset", "cifar10_train"], "takes its images from --data"),
        (["--folder", "a", "--output", "b", "--resolution", "64"], "--resolution needs --filter"),
        (["--folder", "a", "--output", "b", "--filter", "box"], "say how --folder becomes"),
        (["--data", "a", "--filter", "box"], "say how --folder becomes"),
        (["--data", "a", "--resolution", "64"], "own resolution"),
        (["--data", "a", "--workers", "0"], "at least 1"),
    ],
)
def test_prepare_refuses_contradictions(monkeypatch, words, message):
    with pytest.raises(ConfigError, match=message):
        prepare(monkeypatch, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--npz", "images", "--resolution", "64"], "does not change images of an npz"),
        (["--npz", "images", "--origin", "pytorch_fid"], "this npz holds images"),
        (["--npz", "images", "--dataset", "imagenet_256"], "256 x 256 pixels"),
        (["--npz", "images", "--skip-damaged"], "an npz is one file"),
        (["--npz", "statistics", "--limit", "3"], "holds statistics"),
        (["--data", "images", "--recursive"], "a layout of its own"),
    ],
)
def test_prepare_refuses_what_would_do_nothing(tmp_path, monkeypatch, words, message):
    np.savez(tmp_path / "images.npz", np.zeros((4, 32, 32, 3), np.uint8))
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    words = [str(tmp_path / f"{word}.npz") if word in ("images", "statistics") else word for word in words]
    with pytest.raises(ConfigError, match=message):
        prepare(monkeypatch, *words, "--output", tmp_path / "out.safetensors")


def test_prepare_says_where_to_get_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match="torchvision"):
        prepare(monkeypatch, "--data", tmp_path, "--output", tmp_path / "x")
    with pytest.raises(DatasetError, match=r"one folder a class.*https://www.image-net.org"):
        prepare(monkeypatch, "--dataset", "imagenet_256", "--data", tmp_path / "no", "--output", tmp_path / "x")


def test_scores_are_printed_before_they_are_written(tmp_path, real_images, monkeypatch, capsys):
    def full(path, text):
        raise StoreError("the disk is full")

    monkeypatch.setattr(cli, "write_text", full)
    folder = write_folder(tmp_path / "pngs", real_images[:4])
    with pytest.raises(StoreError, match="disk is full"):
        cli.main(["score", str(folder), *SCORE, "--metrics", "is", "--json", str(tmp_path / "out.json"), "--device", "cpu"])
    assert "| IS (" in capsys.readouterr().out


def test_prepare_checks_its_output_before_the_images(tmp_path, real_images, monkeypatch):
    folder = write_folder(tmp_path / "pngs", real_images[:4])
    (tmp_path / "out").mkdir()
    for output in (tmp_path / "out", folder / "0000.png" / "x.safetensors"):
        with pytest.raises(StoreError, match="Choose another path: --output"):
            prepare(monkeypatch, "--folder", folder, "--output", output)


def test_prepare_skips_a_link_to_nothing_on_request(tmp_path, real_images, monkeypatch):
    folder, output = write_folder(tmp_path / "pngs", real_images[:4]), tmp_path / "out.safetensors"
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(MetricError, match="gone.png is a link to"):
        prepare(monkeypatch, "--folder", folder, "--output", output)
    prepare(monkeypatch, "--folder", folder, "--output", output, "--skip-damaged")
    assert b"gone.png" in output.read_bytes()
