import json
import math
import re
from pathlib import Path

import pytest

from iec.errors import ConfigError
from iec.metrics import __main__ as cli
from iec.metrics.gate import Bound, Gate, Verdict
from iec.metrics.interval import Interval
from iec.metrics.protocol import PROTOCOLS, protocol
from iec.metrics.references.reference import load_reference, reference_path
from tests.metrics.test_sources import write_cell, write_folder

SHIPPED = Path(__file__).parents[2] / "experiments/gates"
OWN = ("--reference", "cifar10_train", "--protocol", "efficientnet_lite0", "--device", "cpu", "--metrics", "fid,is")
FAST = ("--device", "cpu", "--bootstrap", "3")
FILE = """protocol: efficientnet_lite0
reference: cifar10_train
num: 8
bounds:
  fid: [0, 1.0e+6]
  is: [1, null]
  efficientnet_lite0_deep/fid: [null, 1000000]
"""

pytestmark = pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")


def of_the_docs():
    """The file that docs/scores.md shows, for 8 images and without the bound of the head, whose FID takes seconds."""
    (text,) = re.findall(r"```yaml\n(# gate.yaml\n.*?)```", (SHIPPED.parents[1] / "docs/scores.md").read_text(), re.DOTALL)
    return "\n".join(line for line in text.replace("num: 2048", "num: 8").splitlines() if "_deep/" not in line)


@pytest.fixture
def folder(tmp_path, real_images):
    return write_folder(tmp_path / "pngs", real_images[:8])


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(cli, "extract_each", lambda *_: pytest.fail("work was done"))


def written(tmp_path, text=FILE):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    return path


def score(*words):
    return cli.main(["score", *map(str, words)])


def test_a_bound_holds_from_its_low_to_its_high_end():
    def passed(bound, value):
        return Verdict(bound, Interval(value)).passed

    accepted = Bound("fid", 23.01085758, 23.95007626)  # MLPerf's of Stable Diffusion XL
    assert [passed(accepted, value) for value in (23.01085757, 23.01085758, 23.5, 23.95007626, 23.95007627)] == [
        False, True, True, True, False
    ]  # fmt: skip
    assert passed(Bound("fid", high=2), 2) and not passed(Bound("fid", low=2), 1.9) and not passed(accepted, math.nan)
    texts = [str(accepted), str(Bound("is", low=2)), str(Bound("a/fid", high=12.3))]
    assert texts == ["fid in [23.01085758, 23.95007626]", "is >= 2", "a/fid <= 12.3"]


def test_a_file_and_words_are_one_gate_and_fill_in_what_the_command_line_leaves_open(tmp_path):
    gate = Gate.read([str(written(tmp_path)), "kid <= 3e1", "fid>=-1"])
    assert gate.bounds[3:] == (Bound("kid", high=30), Bound("fid", low=-1)) and len(gate.bounds) == 5
    assert gate.settings(protocol=None, reference=None) == {"protocol": "efficientnet_lite0", "reference": "cifar10_train"}
    assert Gate.read([]).settings(protocol=None, reference="x") == {"protocol": None, "reference": "x"}


def test_an_image_folder_passes_or_fails_by_the_exit_status(folder, tmp_path, capsys):
    gate = written(tmp_path, FILE[: FILE.index("  efficientnet_lite0_deep")])
    score(folder, "--gate", gate, "--beside", "none", "--metrics", "fid,is", *FAST, "--json", tmp_path / "out.json")  # no exit
    text, record = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    fid, inception = record["gate"]
    assert fid["value"] == record["scores"]["fid"]["value"] and fid["low"] == record["scores"]["fid"]["low"]
    assert (inception["at_least"], inception["at_most"], inception["passed"]) == (1, None, True)
    assert f"| fid in [0, 1000000] | {fid['value']:.6g} | {fid['low']:.4g} .. {fid['high']:.4g} | pass |" in text
    assert "gate passed" in text and text.count("| pass |") == 2
    gate.write_text(of_the_docs())
    with pytest.raises(SystemExit) as end:
        score(folder, "--gate", gate, "--gate", "is>=0", "--beside", "none", *FAST[:2], "--json", tmp_path / "failed.json")
    text = capsys.readouterr().out
    assert end.value.code == 1 and "| is >= 0 |" in text and "| fid <= 40 |" in text and "gate FAILED" in text
    verdicts = {verdict["bound"]: verdict["passed"] for verdict in json.loads((tmp_path / "failed.json").read_text())["gate"]}
    assert verdicts == {"fid <= 40": False, "is >= 2": verdicts["is >= 2"], "is >= 0": True}


def test_a_run_is_judged_by_its_own_clip_score_too(tmp_path, real_images, capsys):
    cell = write_cell(tmp_path / "cell", real_images[:8])
    record = cli.score(cli.arguments(["score", str(cell), *OWN, "--beside", "none"]))
    assert "clip" not in record["scores"] and "gate" not in record
    clip = record["scores"]["fid"] | {"name": "clip", "label": "CLIP score (x)", "value": 31.7, "low": 31.6, "high": 31.8}
    stored = {key: value for key, value in record.items() if key not in ("source", "notes", "beside")}
    stored |= {"scores": {"clip": clip}, "clip": {"network": "x"}}
    (cell / "scores.json").write_text(json.dumps(stored))
    out, bounds = tmp_path / "out.json", ("--gate", "clip>=31.68631873", "--gate", "clip<=31.81331801")
    score(cell, *OWN, "--beside", "none", *bounds, "--json", out)
    assert "| clip >= 31.68631873 | 31.7 | 31.6 .. 31.8 | pass |" in capsys.readouterr().out
    assert json.loads(out.read_text())["clip"] == {"network": "x"}
    (cell / "scores.json").write_text(json.dumps(stored | {"manifest_hash": "of other images"}))
    with pytest.raises(ConfigError, match="clip >= 1: this score is not computed; there will be fid, is"):
        score(cell, *OWN, "--beside", "none", "--gate", "clip>=1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--gate", "kid<=1"],
            "kid <= 1: this score is not computed; there will be efficientnet_lite0_deep/fid, fid, is. Ask",
        ),
        (["--gate", "psnr>=30"], "psnr >= 30: this score is not computed"),
        (["--gate", "inception/fid<=1"], "inception/fid <= 1: this score is not computed"),
        (["--gate", "fid<=low"], "'fid<=low' is no bound. Write NAME<=NUMBER"),
        (["--gate", "<=3"], "'<=3' is no bound"),
        (["--gate", "fid<=nan"], "'fid<=nan' is no bound"),
        (["--gate", "fid=3"], "no such file, and it is no bound"),
        (
            ["--gate", "FILE", "--reference", "fashion_mnist_train"],
            "states reference cifar10_train, the command line fashion",
        ),
        (["--gate", "FILE", "--protocol", "inception"], "states protocol efficientnet_lite0, the command line inception"),
        (["--gate", "FILE", "--num", "7"], "is about 8 images, these are 7. Give it as many: --num 8 .*num_images=8"),
        (["--gate", "FILE", "--metrics", "is"], "fid in .*: this score is not computed"),
        (["--gate", "FILE", "--beside", "none"], "efficientnet_lite0_deep/fid <= 1000000: this score is not computed"),
    ],
)
def test_a_gate_about_something_else_is_refused_before_the_work(folder, tmp_path, idle, words, message):
    words = [str(written(tmp_path)) if word == "FILE" else word for word in words]
    own = OWN if "FILE" not in message and not any("gate.yaml" in word for word in words) else OWN[4:6]
    with pytest.raises(ConfigError, match=message):
        score(folder, *own, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace("num: 8", "extractor_hash: 0123abcd"), "states extractor_hash 0123abcd, this is "),
        (FILE.replace("num: 8", "reference_hash: 0123abcd"), "states reference_hash 0123abcd, this is "),
        (FILE.replace("num: 8", "extractor_hash: abcd"), "extractor_hash: 'abcd'; give 8 digits or more"),
        (FILE.replace("num: 8", "extractor_hash: 12345678"), "extractor_hash: 12345678; give 8 digits or more, in quotes"),
        (FILE.replace("num: 8", "num: many"), "num: 'many'; give a whole number"),
        (FILE.replace("num: 8", "num: true"), "num: True; give a whole number"),
        (FILE.replace("num: 8", "images: 8"), r"unknown keys \['images'\]; choose from protocol, reference, num"),
        ("protocol: inception\n", r"gate.yaml has no bounds. Write  bounds: \{fid: \[null, 12.3\]\}"),
        ("bounds: {fid: 3}\n", r"fid: 3 are no bounds. Give \[low, high\] with low <= high, null for one"),
        ("bounds: {fid: [null, null]}\n", "fid: .* are no bounds"),
        ("bounds: {fid: [3, 2]}\n", "fid: .* are no bounds"),
        ("bounds: {fid: [.nan, 2]}\n", "fid: .* are no bounds"),
        ("bounds: {fid: [a, 2]}\n", "fid: .* are no bounds"),
        ("bounds: {fid: [0, 1], fid: [0, 2]}\n", "the key 'fid' is already given"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_before_the_work(folder, tmp_path, idle, text, message):
    with pytest.raises(ConfigError, match=message):
        score(folder, *(OWN if "protocol" not in text else OWN[4:6]), "--gate", written(tmp_path, text))


def test_a_bound_of_a_protocol_beside_is_asked_of_its_own_score():
    scores = {"own": {"fid": Interval(3, 2, 4)}, "beside": {"fid": Interval(5)}}
    verdicts = Gate.read(["fid<=4", "own/fid<=2", "beside/fid<=4", "beside/fid>=5"]).judge(scores)
    assert [verdict.passed for verdict in verdicts] == [True, False, False, True]
    assert verdicts[0].as_json() == {
        "bound": "fid <= 4", "score": "fid", "at_least": None, "at_most": 4.0, "value": 3.0, "low": 2.0, "high": 4.0, "passed": True
    }  # fmt: skip
    assert verdicts[2].as_json()["low"] is None


def test_two_gates_have_to_agree_and_without_any_there_has_to_be_a_reference(folder, tmp_path, idle):
    other = tmp_path / "other.yaml"
    other.write_text("num: 9\nbounds: {fid: [0, 1]}\n")
    with pytest.raises(ConfigError, match="states num 9, another --gate 8"):
        score(folder, "--gate", written(tmp_path), "--gate", other)
    with pytest.raises(ConfigError, match="give --reference REF, or a --gate file that states one"):
        score(folder, "--gate", "fid<=1")


def test_images_that_cannot_be_read_do_not_count(folder, tmp_path):
    (folder / "0003.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="is about 8 images, these are 7"):
        score(folder, "--gate", written(tmp_path), "--skip-damaged", "--device", "cpu")


def test_a_shipped_gate_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bundled", "bundled.yaml", "experiments/gates/bundled.yaml"):
        assert Gate.read([name]) == Gate.read([str(SHIPPED / "bundled.yaml")])
    (tmp_path / "bundled.yaml").write_text("bounds: {fid: [0, 1]}\n")  # a file that is there comes first
    assert Gate.read(["bundled.yaml"]).stated == {}


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_gate_is_about_scores_that_exist(path):
    """Its hashes are those of the statistics that are shipped, so that it is not refused; its bounds hold for the stored table."""
    gate = Gate.read([str(path)])
    rules = protocol(gate.stated["protocol"])
    extractor = rules.extractor()
    reference = load_reference(reference_path(gate.stated["reference"], extractor), extractor)
    scores = {name: protocol(name).default for name in (rules.name, *rules.beside)}
    assert set(scores) <= set(PROTOCOLS)
    gate.require(scores, gate.stated["num"], {"extractor_hash": extractor.hash, "reference_hash": reference.hash})
    table = json.loads((SHIPPED.parent / "results" / path.stem / "table.json").read_text())
    entry = next(entry for entry in table if entry["cell"] in path.read_text())
    assert entry["manifest"]["num_images"] == gate.stated["num"]
    stored = {
        record["protocol"]: {name: Interval(score["value"]) for name, score in record["scores"].items()}
        for record in (entry["record"], *entry["beside"])
    }
    assert all(verdict.passed for verdict in gate.judge(stored))
