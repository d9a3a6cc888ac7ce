"""The small scale has rows of its own for each instrument, labelled by it and paired with its own reference; `--model` chooses."""

import argparse
from pathlib import Path

import pytest

from iec.analysis.record import Subject
from iec.errors import ConfigError, MismatchError
from iec.io.resources import experiments
from iec.report.sections import read_section
from iec.tables.command import main
from iec.tables.experiment import Experiment
from iec.tables.scales import add_scale_options, bundled_instruments

BOTH = ("ddim_cifar_small", "ddim_fashion_small")
ROWS = ("full precision", "DeepCache N=5")
"""Of experiments/figure1.yaml."""
SCALED = sorted(path.stem for path in experiments().glob("*.yaml") if "\nscales:" in path.read_text())


def read(name, *models, scale="small", extra=("device=cpu",)):
    return Experiment.read(Path(name), extra, scale, models)


def model_of(overrides):
    return [text.removeprefix("model=") for text in overrides if text.startswith("model=")]


def present(labels, experiment):
    return [label for label in labels if label in experiment.rows]


def test_the_instruments_are_the_trained_models_of_the_package():
    assert bundled_instruments() == BOTH


def test_the_scaled_experiments_are_all_but_those_of_a_model_of_their_own():
    assert {path.stem for path in experiments().glob("*.yaml")} - set(SCALED) == {
        "bundled",
        "correction",
        "dit",
        "headline",
        "peers",
        "techniques",
        "ideal",
        "ideal_growth",
        "integer",
        "rule",
        "rule_ideal",
    }


@pytest.mark.parametrize("name", SCALED)
def test_every_experiment_has_the_same_rows_for_both_instruments(name):
    experiment, paper = read(name), read(name, scale="paper")
    rows = {
        model: {label.removeprefix(f"{model}: "): own for label, own in experiment.rows.items() if label.startswith(f"{model}: ")}
        for model in BOTH
    }
    assert len(experiment.rows) == 2 * len(rows[BOTH[0]]) > 0
    assert list(rows[BOTH[0]]) == list(rows[BOTH[1]])
    for cifar, fashion in zip(*(rows[model].values() for model in BOTH), strict=True):
        assert ["model=ddim_fashion_small" if text == "model=ddim_cifar_small" else text for text in cifar] == fashion != cifar
    (replaced,) = experiment.replaced
    alike = [label.rpartition(": ")[2] for label, own in paper.rows.items() if model_of(own) == [replaced]]
    assert list(rows[BOTH[0]]) == alike
    if paper.references:
        references = present(experiment.references, experiment)
        assert [model for label in references for model in model_of(experiment.rows[label])] == list(BOTH)
    for model in BOTH:
        alone = read(name, model)
        assert alone.rows == {label: own for label, own in experiment.rows.items() if model_of(own) == [model]}
        for labels, whole in zip(alone.figures.values(), experiment.figures.values(), strict=True):
            assert present(labels, alone) == present(whole, alone) != []
        assert present(alone.grid, alone) == present(experiment.grid, alone)


def test_the_rows_of_an_instrument_follow_those_of_the_other():
    plain = ["FP", "FP + IEC", "W8A8", "W8A8 + IEC", "W4A8", "W4A8 + IEC"]
    experiment = read("table1")
    assert list(experiment.rows) == [f"{model}: {row}" for model in BOTH for row in plain]
    assert experiment.rows["ddim_fashion_small: W8A8 + IEC"] == [
        "model=ddim_fashion_small",
        "efficiency=w8a8",
        "efficiency.search_samples=65536",
        "iec=all_steps",
        "sampler.steps=50",
        "num_images=2048",
        "device=cpu",
    ]
    assert next(iter(read("table1", *reversed(BOTH)).rows)) == "ddim_fashion_small: FP"
    assert list(read("table1", BOTH[0], BOTH[0]).rows) == [f"{BOTH[0]}: {row}" for row in plain]


def test_published_values_stand_beside_rows_of_the_same_data_set_or_alone():
    rows = {"none", "all", "±1/10", "±1/20"}
    assert set(read("table5").published) == {f"ddim_cifar_small: {row}" for row in rows}
    alone = read("table5", "ddim_fashion_small")
    assert set(alone.published) == rows == set(alone.labels) - set(alone.rows)
    assert str(alone.published["all"]["FID"]) == "7.77 (s)"
    coco = read("table4")
    assert "COCO: W8A8 N=5" in coco.published and "COCO: FP" not in coco.labels
    assert not [label for label in coco.published if label in coco.rows]
    paper = read("table5", scale="paper")
    assert set(paper.published) < set(paper.rows) == set(paper.labels)


def test_rows_that_an_instrument_does_not_take_are_left_out_with_the_reason(caplog):
    experiment = read("figure1", "ddim_fashion_small", "ideal_fashion")
    assert list(experiment.rows) == [f"ddim_fashion_small: {row}" for row in ROWS] + ["ideal_fashion: full precision"]
    assert experiment.labels == tuple(experiment.rows)
    ((why, labels),) = experiment.left_out.items()
    assert labels == ["ideal_fashion: DeepCache N=5"]
    assert "no UNet to quantize or to cache" in why and f"left out: ideal_fashion: DeepCache N=5: {why}" in caplog.text
    assert list(experiment.cells()) == list(experiment.rows) and read("figure1").left_out == {}


def test_an_instrument_that_takes_no_row_is_refused(tmp_path):
    path = tmp_path / "quantized.yaml"
    path.write_text("title: x\nscales: {small: {instruments_for: ddim_cifar}}\nrows: {a: [model=ddim_cifar, efficiency=w8a8]}\n")
    with pytest.raises(MismatchError, match="model=ddim_cifar_small"):
        Experiment.read(path, ["device=cpu"], models=["ideal_fashion"])
    assert list(Experiment.read(path, ["device=cpu"], models=["ddim_cifar_small"]).cells()) == ["ddim_cifar_small: a"]


def test_two_axes_of_variants_are_refused_for_instruments(tmp_path):
    path = tmp_path / "axes.yaml"
    text = "title: x\nscales: {small: {instruments_for: ddim_cifar}, paper: {}}\nrows: {a: [model=ddim_cifar]}\n"
    path.write_text(f'{text}variants: [{{"": []}}, {{" b": [seed=1]}}]\n')
    assert list(Experiment.read(path, scale="paper").rows) == ["a b"]
    with pytest.raises(ConfigError, match="Give one axis"):
        Experiment.read(path, scale="small")
    path.write_text(f'{text}variants: {{" b": [seed=1]}}\n')
    assert list(Experiment.read(path, scale="small").rows) == ["ddim_cifar_small: a b", "ddim_fashion_small: a b"]


def test_a_choice_where_nothing_is_replaced_is_refused_with_a_way_out():
    with pytest.raises(ConfigError, match="at the scale 'paper'. Use --scale small, or leave --model out"):
        read("table1", "ddim_fashion_small", scale="paper")
    with pytest.raises(ConfigError, match="Use model=ddim_cifar_small"):
        read("bundled", "ddim_cifar_small", scale=None)
    other = read("bundled", scale=None, extra=["model=ddim_cifar_small"])
    assert {model_of(own)[-1] for own in other.rows.values()} == {"ddim_cifar_small"} and list(other.by_model()) == [""]
    assert read("table1", "ddim_fashion_small").scale == "small" and read("table1", scale="paper").scale == "paper"
    with pytest.raises(ConfigError, match="Use --model NAME"):
        read("table1", extra=["model=ddim_fashion_small"])


def test_a_choice_without_a_scale_is_of_the_small_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert read("table1", scale=None).scale == "paper"
    assert read("table1", "ddim_fashion_small", scale=None).scale == "small"


def options(*words):
    parser = argparse.ArgumentParser()
    add_scale_options(parser)
    return parser.parse_args(words)


def test_models_are_repeated_or_listed_and_unknown_ones_refused(capsys):
    assert options().model == [] and options("--model", "ideal_fashion").model == ["ideal_fashion"]
    assert options("--model", ",".join(BOTH), "--model=ideal_fashion").model == [*BOTH, "ideal_fashion"]
    assert options().model == []  # the default is not added to
    for text in ("ddim_fashion", "ddim_cifar_small,", ""):
        with pytest.raises(SystemExit):
            options("--model", text)
        assert "Unknown model" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="Unknown model 'ddim_fashion'"):
        read("table1", "ddim_fashion")


def test_an_unknown_model_in_a_file_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("title: x\nscales: {small: {instruments_for: ddim_cifr}}\nrows: {a: [model=ddim_cifr]}\n")
    with pytest.raises(ConfigError, match="Unknown model 'ddim_cifr'"):
        Experiment.read(path, scale="small")


def test_the_commands_take_the_choice(tmp_path, capsys):
    main(["table5", "--model", "ideal_fashion", "--status", "device=cpu", f"paths.output={tmp_path}"])
    assert capsys.readouterr().out.splitlines()[1:] == ["  ideal_fashion: FP: nothing yet"]
    section = read_section(experiments() / "table5.yaml", ["device=cpu", f"paths.output={tmp_path}"], "small", ["ideal_fashion"])
    states = {line.label: line.state for line in section.lines}
    assert states == {"ideal_fashion: FP": "missing", **dict.fromkeys(("none", "all", "±1/10", "±1/20"), "not at this scale")}


def test_an_analysis_of_every_instrument_has_files_of_its_own(tmp_path):
    subjects = Subject.of_experiment(read("figure1"), 2, tmp_path)
    assert [subject.path("norms", ".json").name for subject in subjects] == [
        f"norms-{model}-{row.lower().replace(' ', '-').replace('=', '')}.json" for model in BOTH for row in ROWS
    ]
    odd = Subject.of(["device=cpu"], 1, tmp_path, "±1/20: a\\b")
    assert odd.path("errors", ".png") == tmp_path / "errors--1-20-a-b.png"
