"""An experiment file becomes a table with scores, paired distances and pictures; what is missing is said with its command."""

import csv
import json
import re
import shlex
import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from iec.errors import ConfigError, StoreError, WeightsError
from iec.metrics.frechet import FewSamplesWarning
from iec.runs import runner
from iec.tables.command import main
from iec.tables.experiment import Experiment

SPEC = """
title: a tiny table
common: [sampler.steps=2, num_images=6, batch_size=4, trace_images=2, metrics.bootstrap=5, device=cpu]
reference: base
rows:
  base: [iec=none]
  corrected: [iec=all_steps]
  four steps: [iec=none, sampler.steps=4]
"""
VARIED = """
title: two techniques, each plain and corrected
common: [sampler.steps=2, num_images=4, batch_size=4, trace_images=2, metrics=none, device=cpu]
reference: full
variants:
  "": [iec=none]
  " + IEC": [iec=all_steps]
rows:
  full: [efficiency=none]
  cached: [efficiency=deepcache, efficiency.interval=2]
figures:
  a: [cached, cached + IEC]
  b: [full + IEC]
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    return path


def run(spec, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        main([str(spec), *arguments, f"paths.output={spec.parent / 'out'}"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["num_images=64"], "no experiment file is given"),
        (["bundled.yaml", "--run", "--status"], "not allowed with"),
        (["bundled.yaml", "--run", "--redraw"], "not allowed with"),
    ],
)
def test_what_says_nothing_to_do_or_two_things_is_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        main(given)
    assert message in capsys.readouterr().err


def test_nothing_is_computed_without_run_and_the_missing_commands_are_listed(spec, caplog):
    caplog.set_level("INFO")
    run(spec)
    assert "missing: corrected" in caplog.text and "python -m iec run sampler.steps=2" in caplog.text
    assert not (spec.parent / "out").exists()


def test_rows_whose_weights_are_missing_do_not_stop_the_others(spec, tmp_path, caplog, capsys):
    absent = f"[model.weights={tmp_path / 'absent'}]"
    spec.write_text(f"{SPEC}  absent: {absent}\n  absent too: {absent}\n")
    with pytest.raises(WeightsError, match="absent"):
        run(spec, "--run", "metrics=none")
    assert caplog.text.count("cannot run here: absent, absent too: ") == 1
    table = next((spec.parent / "out" / "tables").glob("*/table.md")).read_text()
    assert "\n\nAgain: `python -m iec.tables " in table
    assert table.count("\n| ") == 4 and "Not there: absent (cannot run here: WeightsError: " in table
    assert "paths.output" not in table  # its reader has other folders
    run(spec, "metrics=none")  # shows what is there, and fails nothing
    capsys.readouterr()
    run(spec, "--status", "metrics=none")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  base: done in") and lines[4].startswith("  absent: cannot run here: WeightsError: ")


def test_a_paired_score_whose_weights_are_missing_is_refused_before_a_row_is_computed(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IEC_METRIC_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    spec.write_text(f"{SPEC}paired: [psnr, lpips]\n")
    with pytest.raises(WeightsError, match="alexnet-owt-7be5be79.pth is neither in(.|\n)*curl -L"):
        run(spec, "--run")
    assert not (spec.parent / "out").exists()
    run(spec, "--status")
    assert "  base: nothing yet" in capsys.readouterr().out


def test_the_table_and_its_pictures(spec, capsys, caplog, monkeypatch):
    monkeypatch.setattr(runner, "floor", lambda reference, protocol, score, n: 1.5 if score == "fid" else None)
    run(spec, "--run")
    (folder,) = (spec.parent / "out" / "tables").iterdir()
    rows = {row["label"]: row for row in json.loads((folder / "table.json").read_text())}
    assert list(rows) == ["base", "corrected", "four steps"]
    assert rows["corrected"]["manifest"]["calls_per_image"] == {
        "full": 2,
        "cached": 0,
        "correction": 2,
        "cached_correction": 0,
        "total": 4,
    }
    assert rows["base"]["scores"]["FID (EffNet-Lite0)"]["value"] > 0
    assert rows["corrected"]["relative_distance_mean"][0] == 0 < rows["corrected"]["relative_distance_mean"][2]
    assert rows["four steps"]["relative_distance_mean"] is None
    assert {"PSNR to ref. (dB)", "SSIM to ref."} <= rows["four steps"]["scores"].keys()
    body = list(csv.DictReader((folder / "table.csv").open()))
    real = "real images (CIFAR-10 test)"
    assert [row["label"] for row in body] == [*rows, real] and body[0]["N"] == body[3]["N"] == "6"
    assert rows["base"]["beside"][0]["protocol"] == "efficientnet_lite0_deep"
    both = [column for column in body[0] if "FID" in column]
    assert both[:2] == ["FID (EffNet-Lite0)", "FID (EffNet-Lite0 head)"]
    assert all("[" in row[column] for row in body[:3] for column in both)
    assert {column: value for column, value in body[3].items() if value} == {
        "label": real,
        "N": "6",
        **dict.fromkeys(both[:2], "1.500"),
    }
    assert "FID (EffNet-Lite0) & FID (EffNet-Lite0 head) & KID" in (folder / "table.tex").read_text()
    markdown = (folder / "table.md").read_text()
    assert "**a tiny table**" in markdown and markdown.count("\n| ") == 5 and "Seed 0" in markdown
    assert f"{real}: mean scores of as many, the bias of N images alone." in markdown
    for name in ("grid", "seconds", "error", "scores", "cost"):
        with Image.open(folder / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 5
    assert "corrected" in capsys.readouterr().out

    plots = {name: (folder / f"{name}.png").read_bytes() for name in ("seconds", "error", "scores", "cost")}
    again = spec.parent / "again" / "tiny"
    again.mkdir(parents=True)
    (again / "table.json").write_text((folder / "table.json").read_text())
    run(spec, "--redraw", "--out", str(again.parent))
    assert {name: (again / f"{name}.png").read_bytes() for name in plots} == plots
    older = [{key: value for key, value in row.items() if key not in ("beside", "floors")} for row in rows.values()]
    for row in older:
        del row["scores"]["FID (EffNet-Lite0 head)"]
    (again / "table.json").write_text(json.dumps(older))
    run(spec, "--redraw", "--out", str(again.parent))
    assert (again / "scores.png").read_bytes() != plots["scores"] and (again / "cost.png").read_bytes() == plots["cost"]
    (again / "table.json").write_text('[{"label": "base"}]')
    for out, problem in [(again.parent, "of another version"), (spec.parent, "has no rows")]:
        with pytest.raises(ConfigError, match=problem):
            run(spec, "--redraw", "--out", str(out))
    with pytest.raises(ConfigError, match="--redraw needs"):
        run(spec, "--redraw")

    def stamps():
        return {p: p.stat().st_mtime_ns for p in (spec.parent / "out").glob("*/shards/*")}

    before = stamps()
    (folder / "grid-of-rows-that-were-there-once.png").touch()
    (folder / "mine.png").touch()
    run(spec, "--run")  # reuses everything
    assert stamps() == before
    assert {path.stem for path in folder.glob("*.png")} == {"grid", "seconds", "error", "scores", "cost", "mine"}
    for path in (spec.parent / "out").glob("*-none-none-T2-*/scores/efficientnet_lite0_deep/6.json"):
        path.unlink()
    caplog.set_level("INFO")
    run(spec)
    assert "base has no scores of efficientnet_lite0_deep: --run computes them" in caplog.text
    assert next(csv.DictReader((folder / "table.csv").open()))["FID (EffNet-Lite0 head)"] == ""
    record = next((spec.parent / "out").glob("*-none-none-T2-*/scores.json"))
    assert {"manifest_hash", "reference_hash", "extractor_hash", "versions"} <= set(json.loads(record.read_text()))


def test_variants_and_figures(tmp_path):
    path = tmp_path / "varied.yaml"
    path.write_text(VARIED)
    run(path, "--run")
    (folder,) = (tmp_path / "out" / "tables").iterdir()
    assert {p.name for p in folder.glob("*.png")} == {"grid.png", "seconds.png", "error-a.png", "error-b.png", "cost.png"}
    body = {row["label"]: row for row in csv.DictReader((folder / "table.csv").open())}
    assert list(body) == ["full", "full + IEC", "cached", "cached + IEC"]
    assert body["cached + IEC"]["calls (full+cached+corr.)"] == "3 (1+1+1)"
    macs = {label: float(row["GMACs / image"]) for label, row in body.items()}
    assert macs["full + IEC"] == pytest.approx(2 * macs["full"], rel=1e-3)
    assert macs["cached + IEC"] - macs["cached"] == pytest.approx(macs["full"] / 2, rel=2e-3)
    assert {row["weights (MB)"] for row in body.values()} == {"16.72"}
    path.write_text(VARIED.replace("[full + IEC]", "[full + EIC]"))
    with pytest.raises(ConfigError, match=r"full \+ EIC"):
        Experiment.read(path)
    for name in ("../b", "a/b", "b c", ""):
        path.write_text(VARIED.replace("  b: [full", f'  "{name}": [full'))
        with pytest.raises(ConfigError, match="names a file"):
            Experiment.read(path)


PRODUCT = """
title: rows, times, correctors
reference: exact, T=2
paired: [rmse, grain]
common: [num_images=4, batch_size=4, metrics=none, device=cpu, trace_images=0]
variants:
  - ", T=2": [sampler.steps=2]
    ", T=3": {of: [exact], overrides: [sampler.steps=3]}
  - "": [iec=none]
    ", Heun": [iec=heun]
rows:
  exact: []
  cached: [efficiency=deepcache]
"""


def test_two_axes_of_variants_make_their_product(tmp_path, monkeypatch):
    path = tmp_path / "product.yaml"
    path.write_text(PRODUCT)
    experiment = Experiment.read(path)
    assert list(experiment.rows) == [
        "exact, T=2",
        "exact, T=2, Heun",
        "exact, T=3",
        "exact, T=3, Heun",
        "cached, T=2",
        "cached, T=2, Heun",
    ]
    assert experiment.rows["cached, T=2, Heun"][-3:] == ["efficiency=deepcache", "sampler.steps=2", "iec=heun"]
    assert experiment.product == (("exact", "cached"), (", T=2", ", T=3"), ("", ", Heun"))
    for old, new, problem in [
        ("of: [exact]", "of: [exakt]", r"a variant is of \['exakt'\], which are not rows"),
        ("of: [exact]", "only: [exact]", "is not an experiment file"),
        ("[rmse, grain]", "[rmse, noise]", r"unknown scores \['noise'\]; choose from psnr, ssim, lpips, rmse, grain"),
        ('  - "": [iec=none]', '  - "": []\n  - "": [iec=none]', "variants has 3 axes; give one, or a list of two"),
    ]:
        path.write_text(PRODUCT.replace(old, new))
        with pytest.raises(ConfigError, match=problem):
            Experiment.read(path)
    path.write_text(VARIED)
    assert Experiment.read(path).product == () and Experiment.read(path).paired == ("psnr", "ssim")


def test_a_table_shows_the_paired_scores_that_it_asks_for_and_maps_their_changes(tmp_path):
    path = tmp_path / "product.yaml"
    path.write_text(
        PRODUCT.replace("common: [", "common: [model=ideal_fashion, ").replace("efficiency=deepcache", "efficiency=error_gain")
    )
    run(path, "--run")
    (folder,) = (tmp_path / "out" / "tables").iterdir()
    rows = {row["label"]: row for row in json.loads((folder / "table.json").read_text())}
    assert rows["exact, T=3"]["scores"].keys() == {"RMSE to ref. (levels)", "grain on black (%)"}
    plain, heun = rows["exact, T=3"], rows["exact, T=3, Heun"]
    for name, change in heun["changes"].items():
        assert change["value"] == pytest.approx(heun["scores"][name]["value"] - plain["scores"][name]["value"])
        assert change["low"] <= change["value"] <= change["high"]
    assert plain["changes"] == {} and len(heun["changes"]) == 2
    assert {"map-rmse-to-ref-levels.png", "map-grain-on-black.png"} <= {file.name for file in folder.iterdir()}


def test_bad_experiments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no experiment file .*missing.yaml"):
        Experiment.read(tmp_path / "missing.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text(SPEC.replace("reference: base", "reference: nobody"))
    with pytest.raises(ConfigError, match="nobody"):
        Experiment.read(path)
    path.write_text(VARIED.replace("  cached: [", "  full + IEC: ["))
    with pytest.raises(ConfigError, match="same label"):
        Experiment.read(path)
    path.write_text(SPEC.replace("iec=all_steps", "iec=everywhere"))
    with pytest.raises(ConfigError, match="Row 'corrected'"):
        Experiment.read(path).cells()
    path.write_text(SPEC.replace("iec=all_steps", "iec.lambda=-1"))
    with pytest.raises(ConfigError, match="iec.lambda"):
        Experiment.read(path).cells()


PUBLISHED = """
title: what a paper says, beside what is measured
source: a paper
reference: [small, large]
scales:
  small:
    overrides: [num_images=2, metrics=none, device=cpu]
    instruments_for: ddim_cifar
    replace: {model=ldm_imagenet: null}
  paper: {overrides: [num_images=7]}
common: [sampler.steps=2]
rows:
  small: [model=ddim_cifar]
  small & corrected: [model=ddim_cifar, iec=all_steps]
  large: [model=ldm_imagenet]
  larger: [model=ldm_imagenet, iec=all_steps]
published:
  small: {FID: [4.19, known]}
  small & corrected: {FID: [null, unknown]}
  large: {FID: [3.5, review], IS: [200, secondary]}
"""


def test_a_row_that_is_pasted_twice_is_refused_with_its_line(spec):
    spec.write_text(SPEC.replace("  four steps:", "  corrected:"))
    with pytest.raises(ConfigError, match=r"tiny\.yaml, line 8: the key 'corrected' is already given in line 7"):
        run(spec)
    spec.write_text(f"{SPEC}scales:\n  small: {{overrides: [], replace: {{a=b: null, a=b: [c=d]}}}}\n")
    with pytest.raises(ConfigError, match="the key 'a=b' is already given"):
        run(spec)


def test_any_label_leaves_the_shape_of_the_table(spec):
    label = "a | b $x$ [red] `c` *d* <e> & 5 % _f_ \\ ~ ^ # {g}"
    spec.write_text(SPEC.replace("  corrected:", f"  '{label}':"))
    run(spec, "--run", "metrics=none")
    (folder,) = (spec.parent / "out" / "tables").iterdir()
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert [row["label"] for row in csv.DictReader((folder / "table.csv").open(newline=""))] == ["base", label, "four steps"]
    assert r"a \textbar{} b \$x\$ [red]" in (folder / "table.tex").read_text()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(spec, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for out in (taken, taken / "below"):
        with pytest.raises(StoreError, match="--out DIR"):
            run(spec, "--run", "--out", str(out))
    assert not (tmp_path / "out").exists()
    run(spec, "--status", "--out", str(taken))  # writes nothing


def test_the_command_of_a_row_is_quoted_for_the_shell(spec):
    spec.write_text(SPEC.replace("[iec=all_steps]", "[iec=all_steps, 'model.prompts=it''s; $HOME']"))
    command = Experiment.read(spec).command("corrected")
    assert shlex.split(command)[-1] == "model.prompts=it's; $HOME" and "iec=all_steps " in command


def test_published_values_stand_beside_measured_ones_and_the_small_scale_is_of_both_bundled_models(tmp_path, capsys):
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED)
    experiment = Experiment.read(path, scale="paper")
    assert experiment.rows["large"] == ["sampler.steps=2", "model=ldm_imagenet", "num_images=7"]
    assert experiment.labels == tuple(experiment.rows)
    run(path, "--run", "--scale", "small")
    (folder,) = (tmp_path / "out" / "tables").iterdir()
    body = {row["label"]: row for row in csv.DictReader((folder / "table.csv").open())}
    labels = [f"{model}: {row}" for model in ("ddim_cifar_small", "ddim_fashion_small") for row in ("small", "small & corrected")]
    assert list(body) == [*labels, "large"]  # nothing is known of the last one
    assert [row["FID, published"] for row in body.values()] == ["4.19 (k)", "?", "", "", "3.5 (r)"]
    assert body["large"]["N"] == "" and body[labels[0]]["N"] == "2" and body["large"]["IS, published"] == "200 (s)"
    paired = {label: bool(row["PSNR to ref. (dB)"]) for label, row in body.items()}
    assert paired == {label: label.endswith("corrected") for label in body}  # each with the plain row of its model
    kinds = ("grid", "seconds", "error", "cost")
    assert {p.name for p in folder.glob("*.png")} == {
        f"{kind}-{model}.png" for kind in kinds for model in ("ddim_cifar_small", "ddim_fashion_small")
    }
    text = (folder / "table.md").read_text()
    assert "Measured on ddim_cifar_small, ddim_fashion_small in place of ddim_cifar: look" in text
    assert f"ref. is '{labels[0]}' or '{labels[2]}' from the same noise" in text
    assert "Published: a paper (k: read in the primary source; s:" in text
    tex = (folder / "table.tex").read_text()
    assert r"small \& corrected &" in tex and tex.count(r" \\") == 6 and tex.startswith("% what a paper says")
    for change in [("[4.19, known]", "[4.19, rumour]"), ("[null, unknown]", "[null, known]")]:
        path.write_text(PUBLISHED.replace(*change))
        with pytest.raises(ConfigError, match="needs one of known"):
            Experiment.read(path, scale="small")
    path.write_text(PUBLISHED)
    with pytest.raises(ConfigError, match="no scale 'huge'; choose one of small, paper"):
        Experiment.read(path, scale="huge")


def test_a_row_that_fails_does_not_stop_the_others(spec, monkeypatch, caplog):
    from iec.errors import NonFiniteError
    from iec.tables import command as tables

    compute = tables.run_cell

    def failing(cell):
        if cell.sampler.placement.kind != "none":
            raise NonFiniteError("the network returned NaN")
        return compute(cell)

    monkeypatch.setattr(tables, "run_cell", failing)
    caplog.set_level("INFO")
    with pytest.raises(NonFiniteError):
        run(spec, "--run", "metrics=none")
    assert "failed: corrected: the network returned NaN" in caplog.text
    (folder,) = (spec.parent / "out" / "tables").iterdir()
    assert [row["label"] for row in json.loads((folder / "table.json").read_text())] == ["base", "four steps"]
    assert "Not there: corrected (nothing yet): `python -m iec run" in (folder / "table.md").read_text()


def test_the_status_says_how_far_every_row_is(spec, capsys):
    run(spec, "--run", "metrics=none", "num_images=4")
    capsys.readouterr()
    run(spec, "--status", "metrics=none", "num_images=4")
    assert capsys.readouterr().out.count(": done in ") == 3
    run(spec, "--status", "metrics=none", "num_images=9")
    assert capsys.readouterr().out.count(": 1 of 3 shards in ") == 3
    run(spec, "--status", "metrics=none", "seed=5")
    assert capsys.readouterr().out.count(": nothing yet") == 3


def test_a_folder_that_cannot_be_used_costs_its_own_row_alone(spec, capsys):
    run(spec, "--run", "metrics=none", "num_images=4")
    (record,) = (spec.parent / "out").glob("*-iec-all_steps-*/cell.json")
    record.write_text("{")
    capsys.readouterr()
    run(spec, "--status", "metrics=none", "num_images=4")
    text = capsys.readouterr().out
    assert text.count(": done in ") == 2 and "corrected: failed: " in text and "holds no usable cell.json" in text
    with pytest.raises(StoreError, match="Choose another folder"):
        run(spec, "--run", "metrics=none", "num_images=4")
    tables = [path.read_text() for path in (spec.parent / "out" / "tables").glob("*/table.md")]
    assert any("Not there: corrected (failed: " in text for text in tables)


OPTIONS = ("model=", "efficiency=", "iec=", "corrector=", "sampler=")


def bringing(experiment, seen):
    """The experiment with the rows alone that bring an override, or a pair of options, that is not among the ``seen``."""
    rows = {}
    for label, overrides in experiment.rows.items():
        parts = {*overrides, *combinations(sorted(word for word in overrides if word.startswith(OPTIONS)), 2)}
        if not seen >= parts:
            rows[label] = overrides
        seen |= parts
    return replace(experiment, rows=rows, references=(), grid=(), compared={}, noise=())


def test_every_shipped_experiment_composes(monkeypatch):
    from iec.models.cards import card
    from iec.models.source import Source
    from tests.conftest import CONFIGS

    checked, seen = Source.of, set()

    def of(name, weights, random_weights, *rest, **options):
        """The paper's weights are not here; all else that a row says of its model is checked."""
        return checked(name, weights, random_weights or card(name).packaged is None, *rest, **options)

    monkeypatch.setattr(Source, "of", of)
    for path in sorted((CONFIGS.parent / "experiments").glob("*.yaml")):
        for scale in ("small", "paper") if "\nscales:" in path.read_text() else (None,):
            experiment = bringing(Experiment.read(path, ["device=cpu"], scale), seen)
            assert experiment.cells().keys() == experiment.rows.keys()
    with pytest.raises(ConfigError, match="model.guidance"):
        Experiment.read(CONFIGS.parent / "experiments" / "table4.yaml", ["device=cpu", "model.guidance=1000"], "paper").cells()
