"""Overrides that are given for all rows of an experiment file."""

from pathlib import Path

import pytest

from iec.errors import ConfigError
from iec.tables.experiment import Experiment
from iec.tables.overrides import with_extra

ROWS = {
    "plain": ["efficiency=none"],
    "default": [],
    "W8A8": ["efficiency=w8a8", "efficiency.search_samples=64"],
    "both": ["efficiency=deepcache", "efficiency=cachequant_w4a8"],
    "cached": ["efficiency=deepcache"],
}


def added(*extra):
    """label -> what it gets."""
    rows = with_extra(ROWS, extra)
    assert all(rows[label][: len(own)] == own for label, own in ROWS.items())
    return {label: rows[label][len(own) :] for label, own in ROWS.items()}


def test_an_override_of_the_technique_is_for_the_rows_whose_technique_has_the_key():
    int8, linear = "efficiency.kernels=int8", "efficiency.forecast=linear"
    assert added(int8, "seed=1", linear) == {
        "plain": ["seed=1"],
        "default": ["seed=1"],
        "W8A8": [int8, "seed=1"],
        "both": [int8, "seed=1", linear],
        "cached": ["seed=1", linear],
    }


def test_the_technique_itself_and_other_keys_are_for_all_rows():
    for extra in ("efficiency=none", "model.compile=true", "+logger.group=x"):
        assert added(extra) == {label: [extra] for label in ROWS}


def test_a_key_that_no_technique_has_is_refused_by_name():
    experiment = Experiment.read(Path("table1"), ["efficiency.kernel=int8", "device=cpu"], "small")
    with pytest.raises(ConfigError, match="kernel"):
        experiment.cells()


def test_a_technique_that_is_not_there_is_refused_by_its_row():
    rows = with_extra({"a": ["efficiency=w8a8"], "b": ["efficiency=w9a9"]}, ["efficiency.kernels=int8"])
    assert rows == {"a": ["efficiency=w8a8", "efficiency.kernels=int8"], "b": ["efficiency=w9a9"]}


def test_integer_kernels_for_all_quantized_rows_of_a_table():
    cells = Experiment.read(Path("table3"), ["efficiency.kernels=int8", "device=cpu"], "small", ["ddim_fashion_small"]).cells()
    kernels = {label.removeprefix("ddim_fashion_small: "): getattr(cell.technique, "kernels", "") for label, cell in cells.items()}
    assert kernels == {label: "" if label.startswith("FP") else "int8" for label in kernels} and len(kernels) == 6
    with pytest.raises(ConfigError, match="would make rows alike that differ: efficiency.kernels=default or int8"):
        Experiment.read(Path("integer"), ["efficiency.kernels=int8"])


def test_a_table_names_the_command_that_computes_it():
    extra = ["num_images=64", "efficiency.kernels=int8", "paths.output=/some/folder"]
    assert Experiment.read(Path("table1"), extra, "small", ["ddim_fashion_small"]).again == (
        "python -m iec.tables experiments/table1.yaml --scale small --model ddim_fashion_small --run num_images=64 "
        "efficiency.kernels=int8"
    )
    assert Experiment.read(Path("peers"), ["model=ddim_cifar_small"]).again == (
        "python -m iec.tables experiments/peers.yaml --run model=ddim_cifar_small"
    )
