"""scripts/account.py: what is counted, and that the page holds it."""

import json

import pytest

from iec.errors import ArtifactError
from iec.metrics.interval import Interval
from iec.models.cards import card
from scripts import account
from scripts.account import RMSE, counts, verdict
from scripts.counted import FID, PSNR, distinct, read
from scripts.marked import filled


def test_the_page_holds_what_the_tables_say():
    page = account.PAGE.read_text(encoding="utf-8")
    assert filled(page, account.part_of(page, account.RESULTS)) == page, "run python -m scripts.account"


@pytest.mark.parametrize(
    ("change", "score", "expected"),
    [((1, 0.5, 2), FID, "worse"), ((-1, -2, -0.5), FID, "better"), ((1, 0.5, 2), PSNR, "better"), ((1, -0.5, 2), FID, "?")],
)
def test_a_change_is_judged_by_its_interval(change, score, expected):
    assert verdict(Interval(*change), score) == expected


def entry(label, images=8, evaluate_at=None, fid=None, weights=None, table_steps=4, corrected=None, seed=0):
    correction = evaluate_at and {"evaluate_at": evaluate_at, "iterations": 1, "lambdas": [0.5]}
    steps = list(range(table_steps)) if corrected is None else corrected
    model = {"name": "ddim_fashion_small", "weights": weights or card("ddim_fashion_small").packaged.sha256}
    return {
        "label": label,
        "identity": {
            "seed": seed,
            "model": model,
            "efficiency": {"technique": "ptq"},
            "sampler": {"pairs": [[k, k - 1] for k in range(table_steps)]},
            "iec": {"correction": correction, "corrected_steps": steps if correction else [], "epsilon_scale": 1.0},
        },
        "manifest": {
            "num_images": images,
            "calls_per_image": {"full": table_steps, "cached": 0, "correction": len(steps) if correction else 0},
        },
        "scores": {},
        "changes": {} if fid is None else {FID: {"value": fid, "low": fid - 1, "high": fid + 1}},
    }


def compared(found, adjusted):
    """The entry with its change of FID as a comparison."""
    return found | {"comparisons": {FID: {"change": found["changes"][FID], "p": adjusted / 2, "adjusted": adjusted}}}


def written(tmp_path, **tables):
    for name, entries in tables.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps(entries))
    return read(tmp_path)


def test_rows_of_other_weights_and_repeated_rows_are_not_counted(tmp_path):
    rows, stale = written(
        tmp_path,
        one=[entry("a"), entry("a + IEC", evaluate_at="t", fid=5), entry("b + IEC", evaluate_at="t", fid=5, weights="other")],
        two=[entry("a + IEC", images=16, evaluate_at="t", fid=-5), entry("a, Heun", evaluate_at="s", fid=0.5)],
        three=[entry("a + IEC, first", evaluate_at="t", fid=5, corrected=[0])],
    )
    assert stale == ["one"]
    assert [row.kind for row in rows] == ["", "IEC", "other", "IEC", "Heun"]
    assert {(row.kind, row.images) for row in distinct(rows)} == {("IEC", 16), ("Heun", 8)}
    assert counts(account.corrected(rows, "IEC"), FID) == "1 / 0 / 0"
    assert counts(account.corrected(rows, "Heun"), FID) == "0 / 0 / 1"


def test_a_row_with_two_distances_is_counted_once(tmp_path):
    both = entry("a + IEC", evaluate_at="t", fid=5)
    both["changes"] |= {PSNR: {"value": 1, "low": 0.5, "high": 2}, RMSE: {"value": 1, "low": 0.5, "high": 2}}
    rows, _ = written(tmp_path, one=[entry("a"), both])
    assert counts(rows, RMSE, PSNR) == "0 / 1 / 0" and counts(rows, "none") == ""


def test_a_change_that_is_compared_in_pairs_goes_before_the_other(tmp_path):
    row = compared(entry("a + IEC", evaluate_at="t", fid=0.5), 0.5)
    row["comparisons"][FID]["change"] = {"value": 0.5, "low": 0.25, "high": 1}
    (found,), _ = written(tmp_path, one=[row])
    assert found.tested and counts([found], FID) == "0 / 1 / 0"


def test_the_last_step_left_out_is_a_kind_of_its_own(tmp_path):
    rows, _ = written(tmp_path, one=[entry("a", evaluate_at="t", fid=5, corrected=[0, 1, 2])])
    assert rows[0].kind == "IEC but the last step"


def test_a_row_with_two_changes_is_of_no_kind(tmp_path):
    both = [entry(label, evaluate_at="t", fid=5, corrected=[0, 1, 2]) for label in ("renorm", "lambda")]
    both[0]["identity"]["iec"]["correction"]["renorm"] = True
    both[1]["identity"]["iec"]["correction"]["lambdas"] = [0.1]
    rows, _ = written(tmp_path, one=both)
    assert [row.kind for row in rows] == ["other", "other"]


def test_variants_of_the_ablation_of_the_feature_are_not_counted_as_iec(tmp_path):
    first, cached = (entry(label, evaluate_at="t", fid=5) for label in ("N=5, cache from first", "N=5, every step, cached"))
    first["identity"]["iec"]["correction"]["cache_from"] = "first"
    cached["manifest"]["calls_per_image"]["cached_correction"] = 9
    last, alone = (entry(f"N=5, {ending}", evaluate_at="t", fid=-0.5) for ending in ("cache from last", "feature alone"))
    alone["identity"]["iec"]["correction"]["lambdas"] = [0.0]
    rows, _ = written(tmp_path, ablation_cache_from=[entry("N=5"), last, compared(first, 0.04), cached, compared(alone, 0.06)])
    assert [row.kind for row in rows] == ["", "IEC", "other", "other", "other"]
    assert account.variants(rows, "ablation_cache_from", account.FEATURE, FID, PSNR).splitlines()[2:] == [
        "| `ddim_fashion_small` | DeepCache N=5 | -0 | +5* | -0 |  |  |  |"
    ]


def test_either_rounding_stands_beside_what_iec_changes_there(tmp_path):
    labels = {"W8A8": None, "W8A8 + IEC": -2.0, "W8A8, block": None, "W8A8, block + IEC": 3.0}
    entries = [entry(label, evaluate_at=None if fid is None else "t", fid=fid) for label, fid in labels.items()]
    for found, value in zip(entries, (149, 147, 110, 113), strict=True):
        found["scores"] = {FID: {"value": value, "low": value - 1, "high": value + 1}}
    rows, _ = written(tmp_path, techniques=[*entries[:3], compared(entries[3], 0.001)])
    first, *others = account.rounding(rows).splitlines()[2:]
    assert first == "| `ddim_fashion_small` | W8A8 | 149 | -2 |  | 110 | +3* |  |" and len(others) == len(account.ROUNDING) - 1


def test_a_page_whose_parts_are_not_those_that_are_made_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="has the parts a; the script makes at equal steps"):
        account.part_of("<!-- a -->\n<!-- end -->", tmp_path)


def test_seeds_stand_side_by_side_and_one_of_them_is_counted(tmp_path):
    entries = [entry("W8A8, IEC", evaluate_at="t", fid=5), entry("W8A8, seed 1, IEC", evaluate_at="t", fid=0.5, seed=1)]
    entries[0] = compared(entries[0], 0.001)
    rows, _ = written(tmp_path, headline=entries, peers=[entry("W8A8, IEC", images=4, evaluate_at="t", fid=5)])
    assert account.seeds(rows).splitlines()[2:] == ["| `ddim_fashion_small` | W8A8 | IEC | +5* / +0 |  |"]
    assert [row.seed for row in account.distinct(rows)] == [0]
