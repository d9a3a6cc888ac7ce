"""From a measurement of a cell and the table that holds its outcome to the rule and its picture, on the bundled model."""

import json
import sys

import pytest

from iec.analysis import __main__ as analyse
from iec.analysis.commands import run_pays, with_errors
from iec.analysis.outcomes import outcome_key
from iec.analysis.pays import PREDICTORS, SEED
from iec.analysis.record import Subject
from iec.analysis.transfer import run_rule
from iec.errors import ConfigError
from iec.metrics.paired import PSNR

SMALL = ["device=cpu", "sampler.steps=3", "model=ddim_fashion_small"]
CACHE = ["efficiency=deepcache", "efficiency.interval=3"]


def subject(tmp_path, *overrides, label=None):
    return Subject.of([*SMALL, f"paths.artifacts={tmp_path}/artifacts", *overrides], 2, tmp_path, label)


def identity_of(model, cell, batch_size):
    correction = None if cell.startswith("plain") else {"evaluate_at": "t"}
    settings = {"efficiency": {"technique": cell}, "iec": {"correction": correction}, "batch_size": batch_size}
    return {"model": {"name": model}, **settings}


def measured(folder, model, cells):
    """pays-*.json of cells, name -> predictor of each image."""
    for cell, values in cells.items():
        record = {
            "model": model,
            "label": cell,
            "num_images": len(values),
            "identity": identity_of(model, cell, 8),
            "outcome_key": outcome_key(identity_of(model, cell, 8)),
            "predictors": {name: {"images": values} for name in PREDICTORS},
        }
        (folder / f"pays-{model}-{cell}.json").write_text(json.dumps(record))


def change(value):
    return {"value": value, "low": value - 1, "high": value + 1}


def table(folder, model, changes, score=PSNR.label, compared=False, name=None):
    """table.json with the change of a score of each cell; compared: the opposite of it, and the change as a comparison."""
    fixed = {"manifest": {"num_images": 4, "seconds_per_image": 1}, "scores": {}, "cost": None, "trace_images": 0, "record": None}
    nothing = dict.fromkeys(("relative_distance_mean", "relative_distance_interval", "paired_difference"))
    entries = [
        {
            **fixed,
            **nothing,
            "label": cell,
            "identity": identity_of(model, cell, 4),
            "changes": {score: change(-v if compared else v)},
            "comparisons": {score: {"change": change(v), "p": 0.5, "adjusted": 0.5}} if compared else {},
        }
        for cell, v in changes.items()
    ]
    (folder / (name or model)).mkdir()
    (folder / (name or model) / "table.json").write_text(json.dumps(entries))


@pytest.fixture
def folder(tmp_path):
    """Two models; the rule of the first is wrong for the last pair of the second."""
    measured(tmp_path, "one", {"bad": [-3, -1], "good": [2, 2], "alone": [0, 0]})
    measured(tmp_path, "two", {"bad": [-2, -2], "good": [0.5, 0.5], "worse": [-4, 0]})
    table(tmp_path, "one", {"bad": -4, "good": 3})
    table(tmp_path, "two", {"bad": -1.5, "good": 2, "worse": 1.5})
    return tmp_path


def test_what_is_measured_of_a_cell_is_written_and_reused(tmp_path, monkeypatch):
    first = run_pays(subject(tmp_path, *CACHE, "iec=all_steps", label="DeepCache, T=3"))
    record = json.loads((tmp_path / "pays-deepcache-t3.json").read_text())
    assert record["seed"] == SEED and record["num_images"] == 2 and record["machine"] and record["cell"].startswith("ddim_fashion")
    assert (
        record["outcome_key"] == outcome_key(record["identity"])
        and record["identity"]["model"]["weights"]
        and record["identity"]["seed"] == 0
    )
    for name in PREDICTORS:
        mean, *_ = record["predictors"][name]["mean"]
        assert mean == pytest.approx(sum(record["predictors"][name]["images"]) / 2, rel=1e-4)
    assert len(record["mean over images"]["removed"]) == len(record["steps"]) == 3
    assert record["calls"]["pilot"] == {"full": 4, "cached": 8, "corrections": 2, "full precision": 6}
    monkeypatch.setattr(Subject, "setup", lambda self: pytest.fail("nothing was left to compute"))
    again = run_pays(subject(tmp_path, *CACHE, "iec=all_steps", label="DeepCache, T=3"))
    assert str(again["predictors"]) == str(first["predictors"])


def test_rows_that_are_not_corrected_are_left_out_where_others_are(tmp_path):
    plain, corrected, full = (
        subject(tmp_path, *own) for own in ([*CACHE, "iec=none"], [*CACHE, "iec=all_steps"], ["iec=all_steps"])
    )
    assert with_errors([plain, corrected, full]) == [corrected]
    assert with_errors([plain]) == [plain]


def test_full_precision_and_the_seed_of_the_measurement_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Choose a technique, e.g. efficiency=deepcache"):
        with_errors([subject(tmp_path)])
    with pytest.raises(ConfigError, match="Choose another"):
        run_pays(subject(tmp_path, *CACHE, f"seed={SEED}"))


def test_corrections_that_cannot_be_measured_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Subject, "setup", lambda self: pytest.fail("something was loaded"))
    for words, message in ((["corrector=timeshift"], "TimeShift"), (["iec=all_steps", "iec.lambda=0"], "a lambda above 0")):
        with pytest.raises(ConfigError, match=message):
            run_pays(subject(tmp_path, *CACHE, *words))


def test_the_rule_is_fitted_on_one_model_and_tested_on_the_other(folder, caplog):
    caplog.set_level("INFO")
    numbers = run_rule([folder], PSNR.label, "propagated", None, folder)
    record, text = json.loads((folder / "rule.json").read_text()), (folder / "rule.md").read_text()
    assert (folder / "rule.png").read_bytes().startswith(b"\x89PNG") and text.strip() in caplog.text
    assert len(record["pairs"]) == 5  # the outcome of the sixth is not there
    assert record["trivial"]["two"]["never"]["wrong"] == 2 and record["trivial"]["two"]["always"]["wrong"] == 1
    by_images = {
        t["images"]: (t["c"], t["tested"]["wrong"], t["tested"]["pairs"])
        for t in numbers["transfers"]
        if (t["predictor"], t["fitted_on"]) == ("propagated", "one")
    }
    assert by_images == {1: (-0.5, 1, 3), 2: (0.0, 1, 3)}
    assert "wrong with c = 0 | rank correlation |" in text
    assert "| propagated | 2 | one | two | 0.0 | 0 of 2, 0 % [0, 66] | 1 of 3, 33 % [6, 79] | 1 of 3, 33 % [6, 79] | 0.87 |" in text


def test_a_comparison_goes_before_a_change(folder):
    measured(folder, "three", {"bad": [1, 1]})
    table(folder, "three", {"bad": -4}, compared=True)
    pairs = run_rule([folder], PSNR.label, "pilot", None, folder)["pairs"]
    assert [pair["gain"].value for pair in pairs if pair["model"] == "three"] == [-4]


def test_what_twice_the_steps_change_is_no_gain_of_a_correction(folder):
    measured(folder, "three", {"plain, 2T": [5, 5], "bad": [1, 1]})
    table(folder, "three", {"plain, 2T": 9, "bad": -4}, compared=True)
    pairs = run_rule([folder], PSNR.label, "pilot", None, folder)["pairs"]
    assert [pair["label"] for pair in pairs if pair["model"] == "three"] == ["bad"]


def test_of_two_measurements_of_a_cell_the_larger_counts(folder):
    measured(folder, "one", {"bad": [7.0] * 5})
    (folder / "pays-one-bad.json").rename(folder / "pays-0-first.json")
    measured(folder, "one", {"bad": [1.0]})
    pairs = run_rule([folder], PSNR.label, "pilot", 1, folder)["pairs"]
    assert [pair["pilot"] for pair in pairs if (pair["model"], pair["label"]) == ("one", "bad")] == [7.0]


def test_two_tables_that_disagree_are_refused_and_one_of_them_is_not(folder):
    table(folder, "one", {"bad": -4, "good": 3}, name="again")
    assert run_rule([folder], PSNR.label, "pilot", None, folder)["pairs"]
    table(folder, "one", {"bad": -4, "good": 2}, name="other")
    with pytest.raises(ConfigError, match="give 'good' other changes. Name the folder of one"):
        run_rule([folder], PSNR.label, "pilot", None, folder)
    for path in folder.glob("pays-*.json"):
        path.rename(folder / "one" / path.name)
    assert run_rule([folder / "one"], PSNR.label, "pilot", None, folder)["pairs"]


def test_a_score_whose_fall_is_better_pays_where_it_falls(folder):
    table(folder, "grain", {"bad": 4, "good": -3}, "grain on black (%)")
    measured(folder, "grain", {"bad": [-3, -1], "good": [2, 2]})
    pairs = run_rule([folder], "grain on black (%)", "pilot", None, folder)["pairs"]
    assert [(pair["label"], pair["pays"], pair["gain"].value) for pair in pairs] == [("bad", False, -4), ("good", True, 3)]


def test_a_measurement_meets_the_outcome_of_its_own_weights_and_settings_alone():
    keys = {outcome_key(identity_of(*of, size)) for of in (("a", "x"), ("a", "y"), ("b", "x")) for size in (4, 8)}
    assert len(keys) == 3


def test_a_measurement_in_simulation_meets_an_outcome_on_integers():
    simulated, integer = identity_of("a", "ptq", 8), identity_of("a", "ptq", 8)
    integer["efficiency"]["kernels"] = "int8"
    assert outcome_key(simulated) == outcome_key(integer)


def test_the_batch_belongs_to_an_outcome_where_it_decides_the_image():
    def keys(technique, norm):
        found = [identity_of("a", technique, size) for size in (4, 8)]
        for identity in found:
            identity["iec"]["correction"]["norm"] = norm
        return {outcome_key(identity) for identity in found}

    assert len(keys("ptq", "image")) == 1
    assert len(keys("ptq", "batch")) == len(keys("ErrorRounding", "image")) == 2


def test_what_does_not_belong_together_is_refused(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ConfigError, match="No measurement.*Measure them: python -m iec.analysis pays"):
        run_rule([empty], PSNR.label, "pilot", None, empty)
    with pytest.raises(ConfigError, match=r"compared in 'FID'. Compute them: python -m iec.tables FILE --run"):
        run_rule([folder], "FID", "pilot", None, folder)
    measured(empty, "other", {"bad": [1]})
    with pytest.raises(ConfigError, match="of different cells"):
        run_rule([empty, folder / "one"], PSNR.label, "pilot", None, empty)
    for images in (0, 3):
        with pytest.raises(ConfigError, match=r"Choose 1 \.\. 2"):
            run_rule([folder], PSNR.label, "pilot", images, folder)
    assert run_rule([folder], PSNR.label, "pilot", 2, folder)["transfers"]


def test_a_damaged_file_and_one_of_another_version_are_refused_by_name_and_a_folder_without_them_is_not(folder):
    other = folder / "other"
    other.mkdir()
    for name, text, said in (
        ("pays-x.json", "{", "pays-x.json is damaged"),
        ("table.json", "[", "table.json is damaged"),
        ("pays-x.json", '{"num_images": 2}', "pays-x.json is of another version.*outcome_key"),
        ("table.json", '[{"label": "x"}]', "table.json is of another version.*identity"),
    ):
        (other / name).write_text(text)
        with pytest.raises(ConfigError, match=f"{said}.*Write it again, or leave its folder out"):
            run_rule([folder], PSNR.label, "pilot", None, folder)
        (other / name).unlink()
    assert run_rule([folder], PSNR.label, "pilot", None, folder)["pairs"]


def test_the_commands_take_overrides_and_folders(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analyse.py", "rule", str(folder), "--out", str(folder / "found"), "--predictor", "one_step"])
    analyse.main()
    assert (folder / "found" / "rule.md").is_file()
    monkeypatch.setattr(sys, "argv", ["analyse.py", "rule", "sampler.steps=3"])
    with pytest.raises(SystemExit):
        analyse.main()
    assert "takes folders" in capsys.readouterr().err
    words = ["pays", *SMALL, *CACHE, "iec=all_steps", f"paths.artifacts={folder}/artifacts", "--images", "1", "--label", "it"]
    monkeypatch.setattr(sys, "argv", ["analyse.py", *words, "--out", str(folder / "found")])
    analyse.main()
    assert (folder / "found" / "pays-it.json").is_file()
