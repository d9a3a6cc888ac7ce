"""scripts/results_tables.py and scripts/marked.py: tables of pages that come from the results."""

import json

import pytest

from iec.errors import ArtifactError
from scripts import marked, results_tables
from scripts.marked import filled, names

FID, PSNR = results_tables.SCORES


@pytest.mark.parametrize("page", results_tables.PAGES, ids=lambda path: path.name)
def test_the_pages_hold_what_the_tables_say(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text, results_tables.table) == text, "run python -m scripts.results_tables"


def entry(label, model="a", counts=(4, 0, 0), fid=(100, 90, 110), psnr=None, change=None, adjusted=0.01):
    ends = {score: value for score, value in ((FID, fid), (PSNR, psnr)) if value}
    return {
        "label": label,
        "identity": {"model": {"name": model}},
        "manifest": {
            "calls_per_image": dict(zip(("full", "cached", "correction"), counts, strict=True)) | {"cached_correction": 0}
        },
        "scores": {score: dict(zip(("value", "low", "high"), value, strict=True)) for score, value in ends.items()},
        "comparisons": {}
        if change is None
        else {FID: {"change": dict(zip(("value", "low", "high"), change, strict=True)), "adjusted": adjusted}},
    }


@pytest.fixture
def results(tmp_path):
    one = [
        entry("a: plain"),
        entry("a: plain + IEC", counts=(4, 0, 4), fid=(120, 0, 0), psnr=(20.04, 19.96, 20.16), change=(20, 10.4, 29.6)),
        entry("b: plain", "b"),
        entry("b: plain + IEC", "b", counts=(4, 0, 4), change=(-3, -7, 1), adjusted=0.2),
    ]
    two = [entry("cached", counts=(1, 3, 1), psnr=(20, 19, 21))]  # of model a
    for name, entries in {"one": one, "two": two}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps(entries))
    return tmp_path


def lines(name, results):
    return [[part.strip() for part in line.strip("|").split("|")] for line in results_tables.table(name, results).splitlines()]


def test_rows_of_two_models_stand_side_by_side_with_what_they_change(results):
    header, _, plain, corrected = lines("rows one", results)
    assert header == ["", "calls / image", "`a`: FID", "`a`: PSNR (dB)", "`b`: FID", "`b`: PSNR (dB)"]
    assert plain == ["plain", "4", "100 [90, 110]", "", "100 [90, 110]", ""]
    assert corrected == ["plain + IEC", "4+0+4", "120, +20 [+10, +30]*", "20.0 [20.0, 20.2]", "100, -3 [-7, +1]", ""]


def test_rows_are_chosen_by_name_from_several_tables(results):
    _, _, cached, plain = lines("rows one two:\n    cached\n | plain", results)
    assert cached == ["cached", "1+3+1", "100 [90, 110]", "20.0 [19.0, 21.0]", "", ""]
    assert plain[0] == "plain"
    with pytest.raises(ArtifactError, match=r"no row \['plian'\]. Choose from: plain \| plain \+ IEC"):
        results_tables.table("rows one: plian", results)
    with pytest.raises(ArtifactError, match="python -m iec.tables experiments/three.yaml --run --out"):
        results_tables.table("rows three", results)


def test_every_table_is_listed_with_the_minutes_that_it_was_planned_to_take_and_took(tmp_path):
    def row(calls, efficiency, seconds):
        counts = dict(zip(("full", "cached", "correction"), calls, strict=True)) | {"cached_correction": 0, "total": sum(calls)}
        identity = {
            "model": {"name": "ddim_cifar_small"},
            "sampler": {"pairs": [[9, 0]] * len(calls)},
            "efficiency": efficiency,
        }
        return {"identity": identity, "manifest": {"calls_per_image": counts, "num_images": 1000, "seconds_per_image": seconds}}

    rows = [row((10, 0, 0), {}, 0.1), row((10, 0, 0), {"weight_bits": 8}, 0.2), row((0, 10, 0), {}, 0.03)]
    rows.append(row((0, 10, 10), {"weight_bits": 8, "kernels": "int8"}, 0.27))
    (tmp_path / "one").mkdir()
    (tmp_path / "one/table.json").write_text(json.dumps(rows))
    (tmp_path / "one/table.md").write_text("**What one is**\n\n| |\n")
    header, _, line = results_tables.table("runs", tmp_path).splitlines()
    assert header.startswith("| table | what | model | T | N | rows |")
    # 1000 images x 0.012 s x (10 + 2 x 10 + 0.3 x 10 + 0.7 x (10 + 0.3 x 10)) calls
    assert line == "| [one](one/table.md) | What one is | `ddim_cifar_small` | 3 | 1000 | 4 | 8 | 10 |"
    rows[0]["label"], rows[0]["identity"]["model"]["name"] = "a row", "another"
    (tmp_path / "one/table.json").write_text(json.dumps(rows))
    with pytest.raises(ArtifactError, match="a row: nothing was planned for another.*SECONDS_A_CALL"):
        results_tables.table("runs", tmp_path)


def test_only_marked_parts_change_and_names_stay(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- b -->\nold\n<!-- end -->\nc\n<!-- d -->\n<!-- end -->\n")
    assert names(page.read_text()) == ["b", "d"]
    monkeypatch.setattr("sys.argv", ["x", "--check"])
    with pytest.raises(SystemExit, match="1"):
        marked.fill("", {page: str.upper})
    monkeypatch.setattr("sys.argv", ["x"])
    marked.fill("", {page: str.upper})
    assert page.read_text() == "a\n<!-- b -->\n\nB\n\n<!-- end -->\nc\n<!-- d -->\n\nD\n\n<!-- end -->\n"
    monkeypatch.setattr("sys.argv", ["x", "--check"])
    with pytest.raises(SystemExit, match="0"):
        marked.fill("", {page: str.upper})
