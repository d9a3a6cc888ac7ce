"""Sweeps of W&B: the file, the commands that its agents run, and what is refused."""

import itertools
import re

import pytest

from iec.errors import ConfigError
from iec.sweeps.sweep import main as export
from iec.sweeps.sweep import sweep_config
from tests.conftest import CONFIGS

pytest.importorskip("wandb")
SWEEP = CONFIGS.parent / "experiments" / "sweeps" / "lambda_placement.yaml"


def agent_commands(config):
    """What an agent runs for each combination, by wandb's own code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    keys = list(config["parameters"])
    for values in itertools.product(*(config["parameters"][key]["values"] for key in keys)):
        made = create_sweep_command_args({"args": {key: {"value": value} for key, value in zip(keys, values, strict=True)}})
        command = create_sweep_command(list(config["command"]))
        start = ["${env}", "${interpreter}", "-m", "${program}", "run"]
        assert config["program"] == "iec" and command[:5] == start and command[-1] == "${args_no_hyphens}"
        yield [*command[5:-1], *made["args_no_hyphens"]]


def test_the_sweep_over_lambda_and_placement(make_cell, tmp_path):
    """The file is what its own command writes, and its agents make the cells that a Hydra sweep of the same arguments makes."""
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    arguments = re.search(r"^# python -m iec.sweeps (.*)$", SWEEP.read_text(), re.MULTILINE)[1].split()
    export([*arguments, "--output", str(tmp_path / "again.yaml")])
    assert (tmp_path / "again.yaml").read_text() == SWEEP.read_text()
    config = load_sweep_config(str(SWEEP))
    commands = list(agent_commands(config))
    cells = [make_cell(*command) for command in commands]
    expected = itertools.product(("all_steps", "first_last", "first_step"), (0.1, 0.3, 0.5, 0.7, 1.0))
    assert [(cell.sampler.placement.kind, cell.config.iec["lambda"]) for cell in cells] == list(expected)
    assert len({cell.slug for cell in cells}) == 15 and {cell.logger.name for cell in cells} == {"wandb"}
    assert config["metric"] == {
        "name": "efficientnet_lite0/fid",
        "goal": "minimize",
    }  # a run's key, see tests/runs/test_tracking.py


def test_values_of_a_sweep_reach_the_command_as_they_were_written(make_cell):
    values = ["0.5", "1.0", "[1.0,0.5]"]
    fixed = ["iec=all_steps", "iec.iterations=2", "model.random_weights=true", "metrics=none", "logger.project=p"]
    config = sweep_config([*fixed, f"iec.lambda={','.join(values)}", "sampler.steps=null,4"], "random", "a name")
    assert config["project"] == "p" and "metric" not in config and config["name"] == "a name" and config["method"] == "random"
    assert config["parameters"]["iec.lambda"]["values"] == [0.5, 1.0, "[1.0,0.5]"]  # numbers have an axis
    expected = [[*fixed, "logger=wandb", f"iec.lambda={a}", f"sampler.steps={b}"] for a in values for b in ("null", "4")]
    assert list(agent_commands(config)) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["iec=all_steps"], "Nothing is swept"),
        (["iec=all_steps,everywhere"], "everywhere"),
        (["iec=all_steps", "iec.lambda=0.5,-1"], "lambda"),
        (["iec=all_steps", "iec.lambda=interval(0,1)"], "key=range"),
        (["iec=all_steps,"], "key=a,b"),
    ],
)
def test_sweeps_with_a_combination_that_cannot_be_run_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        sweep_config(overrides)
