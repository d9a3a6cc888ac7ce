"""The commands on the bundled model, as small as they can be."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

from iec.analysis import __main__ as analyse
from iec.analysis.commands import Budget, run_errors, run_norms, run_plan, run_suggest
from iec.analysis.norms import Options
from iec.analysis.record import Subject
from iec.analysis.suggest import SEED as SUGGEST_SEED
from iec.efficiency.planning.plan import SEED as PLANNING_SEED
from iec.errors import ConfigError, StoreError
from iec.tables import command as tables

SMALL = ["device=cpu", "sampler.steps=6", "sampler.spacing=quad", "efficiency=deepcache", "efficiency.interval=2"]


def subject(tmp_path, *overrides, images=2):
    return Subject.of([*SMALL, f"paths.artifacts={tmp_path}/artifacts", *overrides], images, tmp_path, "DeepCache N=2")


def read(tmp_path, name):
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["seed"] == 0 and record["num_images"] == 2 and record["date"] and record["machine"]
    return record


def test_errors_of_both_samplers_are_written_and_reused(tmp_path, monkeypatch):
    first = run_errors(subject(tmp_path))
    record = read(tmp_path, "errors-deepcache-n2")
    assert len(record["without IEC"]["mean over images"]["total"]) == 7
    assert record["with IEC"]["growth"]["exponent"][0] == pytest.approx(first["with IEC"]["growth"]["exponent"][0], rel=1e-4)
    monkeypatch.setattr(Subject, "setup", lambda self: pytest.fail("nothing was left to compute"))
    again = run_errors(subject(tmp_path))
    np.testing.assert_array_equal(again["with IEC"]["final error of each image"], first["with IEC"]["final error of each image"])


def test_norms_go_on_where_they_stopped_and_say_what_did_not_converge(tmp_path):
    options = Options((), max_iterations=4)
    run_norms(subject(tmp_path), options, 5)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("step-*.npz")}
    numbers = run_norms(subject(tmp_path), options, 4)
    assert numbers["steps"] == [0, 4]
    assert kept and all(path.stat().st_mtime_ns == written for path, written in kept.items())
    matrix = read(tmp_path, "norms-deepcache-n2")["matrices"]["A I + B J"]
    converged = np.array(matrix["norm converged"])
    assert matrix["unconverged"] == (2 - converged.sum(axis=0)).tolist()
    assert [mean is None for mean in matrix["mean"]] == [not any(column) for column in converged.T]


def test_a_plan_is_written_with_its_test_and_found_again(tmp_path, caplog):
    caplog.set_level("INFO")
    first = run_plan(subject(tmp_path), 2, (0.5,), Budget(3, None, 6))
    record = json.loads((tmp_path / "plan-deepcache-n2.json").read_text())
    assert len(record["refresh"]) + len(record["corrected"]) == 3
    assert [line["label"] for line in record["held out"]][:2] == ["plan", "refreshes 0,2,4"]
    assert first["overrides planned"] in caplog.text
    again = run_plan(subject(tmp_path), 2, (0.5,), Budget(3, None, 6))
    spent = [numbers.pop("calls of the search") for numbers in (first, again)]
    assert again == first
    assert spent[1] == {**spent[0], "full": spent[0]["full"] + 2 * 6}  # the reference alone was run again


def test_no_plan_is_made_to_be_thrown_away(tmp_path):
    """The refresh steps of the cell have no part in the choice, so that none are searched for first."""
    words = ["efficiency.schedule=planned", "efficiency.objective=feature", "efficiency.plan_images=1"]
    planned = run_plan(subject(tmp_path, *words), 2, (0.5,), Budget(3, None, 6))
    assert not (tmp_path / "artifacts").exists()
    uniform = run_plan(subject(tmp_path / "uniform"), 2, (0.5,), Budget(3, None, 6))
    assert planned["overrides planned"] == uniform["overrides planned"] and planned["held out"] == uniform["held out"]


def test_a_corrector_that_is_fitted_to_refresh_steps_is_not_fitted_to_those_of_a_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(Subject, "setup", lambda self: pytest.fail("refused before anything is prepared"))
    for corrector in ("affine", "es_search"):
        with pytest.raises(ConfigError, match=r"is fitted for refresh steps.*corrector=none"):
            run_plan(subject(tmp_path, f"corrector={corrector}"), 2, (0.5,), Budget(3, None, 6))
    with pytest.raises(ConfigError, match="at most 6 steps"):
        run_plan(subject(tmp_path), 2, (0.5,), Budget(13, None, 6))


def test_calls_of_a_technique_without_free_refresh_steps_are_not_planned(tmp_path):
    with pytest.raises(ConfigError, match="efficiency=deepcache, or leave --calls out"):
        run_plan(Subject.of(["efficiency=none"], 2, tmp_path), 2, (0.5,), Budget(3, None, 6))


def test_images_that_decide_where_they_refresh_have_no_single_steps_and_another_schedule_has(tmp_path):
    cache = ["efficiency=deepcache", "efficiency.threshold=0.3", "efficiency.schedule=adaptive"]
    with pytest.raises(ConfigError, match=r"efficiency\.schedule=adaptive\. Use .* another schedule"):
        Subject.of(cache, 2, tmp_path)
    Subject.of(cache[:1], 2, tmp_path)


def test_a_suggestion_is_written_with_its_test(tmp_path, caplog):
    caplog.set_level("INFO")
    numbers = run_suggest(subject(tmp_path), 2, (0.3, 0.7), None)
    record = read(tmp_path, "suggest-deepcache-n2")
    assert [line["label"] for line in record["held out"]][:2] == ["suggestion", "none"]
    assert record["steps"]["index"] == [0, 2, 4]
    assert numbers["overrides suggested"] in caplog.text or "Nothing beats no correction" in caplog.text


def test_the_script_takes_the_overrides_of_run(tmp_path, monkeypatch):
    options = ["--images", "2", "--out", str(tmp_path), "--label", "DeepCache N=2"]
    monkeypatch.setattr(sys, "argv", ["analyse.py", "errors", *SMALL[:2], *options, *SMALL[2:]])
    analyse.main()
    assert read(tmp_path, "errors-deepcache-n2")["overrides"] == SMALL


def test_every_row_of_an_experiment_file_is_analysed(tmp_path, monkeypatch):
    path = tmp_path / "figure.yaml"
    path.write_text("title: two\nrows:\n  N=2: [efficiency.interval=2]\n  N=3: [efficiency.interval=3]\n")
    words = ["norms", str(path), *SMALL[:-1], "--every", "4", "--lambdas", "--images", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["analyse.py", *words])
    monkeypatch.setattr(analyse, "Options", partial(Options, max_iterations=4))  # quick; what does not converge is said to
    analyse.main()
    found = {name: json.loads((tmp_path / f"norms-{name}.json").read_text()) for name in ("n2", "n3")}
    assert [record["cell"].split("-")[1] for record in found.values()] == ["deepcache"] * 2
    assert found["n2"]["cell"] != found["n3"]["cell"]
    with pytest.raises(ConfigError, match="no reference row"):
        tables.main([str(path)])


def test_float32_is_float32_by_every_door(monkeypatch):
    seen, products = [], torch.backends.cuda.matmul
    monkeypatch.setattr(analyse, "subjects", lambda args: seen.append(products.fp32_precision) or [])
    monkeypatch.setattr(sys, "argv", ["analyse.py", "norms"])
    before = products.fp32_precision
    try:
        products.fp32_precision = "tf32"
        analyse.main()  # what scripts/analyse.py calls, too
        assert seen == ["ieee"] and products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(analyse, "subjects", lambda args: [])
    monkeypatch.setattr(sys, "argv", ["analyse.py", "norms", "--out", str(tmp_path / "file" / "below")])
    with pytest.raises(StoreError, match=r"Choose another folder \(--out=DIR\)"):
        analyse.main()
    monkeypatch.setattr(sys, "argv", ["analyse.py", "norms", f"--out={tmp_path / 'other'}"])
    analyse.main()


def test_an_unknown_option_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analyse.py", "errors", "sampler.steps=5", "--imges", "3"])
    with pytest.raises(SystemExit):
        analyse.main()
    assert "--imges" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["norms", "--model", "ideal_fashion"], "Use an override: model=NAME"),
        (["norms", "--scale", "paper"], "none is given"),
        (["norms", "experiments/figure1.yaml", "--label", "x"], "Leave it out"),
        (["suggest", "--calls", "10", "--budget", "3"], "with --calls it is --corrections"),
        (["suggest", "--corrections", "3"], "belong to --calls"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["analyse.py", *words])
    with pytest.raises(SystemExit):
        analyse.main()
    assert message in capsys.readouterr().err


def test_what_cannot_be_analysed_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Subject, "setup", lambda self: pytest.fail("something was loaded"))
    bad = [
        (lambda: run_norms(subject(tmp_path, "corrector=unic"), Options(), 1), "single steps"),
        (lambda: run_norms(subject(tmp_path, "corrector=dcw"), Options(), 1), "corrector=none"),
        (lambda: run_errors(subject(tmp_path, "sampler.steps=3")), "longer timetable"),
        (lambda: run_suggest(subject(tmp_path), 1, (0.5,), None), "2 images or more"),
        (lambda: run_suggest(subject(tmp_path, f"seed={SUGGEST_SEED}"), 2, (0.5,), None), "test it on another"),
        (lambda: run_plan(subject(tmp_path), 2, (0.5,), Budget(3, None, 1)), "evaluations or more"),
        (lambda: run_plan(subject(tmp_path, f"seed={PLANNING_SEED}"), 2, (0.5,), Budget(3, None, 6)), "test it on another"),
    ]
    for call, message in bad:
        with pytest.raises(ConfigError, match=message):
            call()


def test_a_bad_override_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match="efficiency.nonsense"):
        subject(tmp_path, "efficiency.nonsense=1")
    with pytest.raises(ConfigError, match="at least 1"):
        subject(tmp_path, images=0)
    for looks_back in ("sampler=unipc", "corrector=unic", "corrector=stepback", "corrector=restart"):
        with pytest.raises(ConfigError, match="Use sampler=ddim, corrector=none and another schedule"):
            subject(tmp_path, looks_back)
    with pytest.raises(ConfigError, match="at least 1"):
        run_norms(subject(tmp_path), Options(), 0)
