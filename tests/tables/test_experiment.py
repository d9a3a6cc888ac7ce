"""The main job's file: rows that are said to cost the same number of network calls do."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from iec.errors import ConfigError
from iec.sampling.network import Prediction
from iec.sampling.noise import Noise
from iec.tables.experiment import Experiment

PLAIN = {"full precision": "31 steps", "W8A8": "31 steps", "W4A8": "31 steps", "DeepCache N=5": "Heun"}
"""A row -> the control that is beside its correction."""


def calls_of(cell):
    """Kind -> network calls an image, counted by a network that predicts nothing."""
    calls = Counter()

    def network(x, step, cond=None, cache=None):
        calls[step.mode] += 1
        return Prediction(torch.zeros_like(x), x if step.mode == "full" else None)

    for _ in cell.sampler.trajectory(network, Noise(0, (0,), (1, 2, 2))):
        pass
    return dict(calls)


def test_a_correction_and_its_control_make_equally_many_calls_in_the_main_job():
    experiment = Experiment.read(Path("bundled"), ["device=cpu"])
    cells = experiment.cells()
    assert list(cells) == [label for row, control in PLAIN.items() for label in (row, f"{row} + IEC", f"{row}, {control}")]
    calls = {label: calls_of(cell) for label, cell in cells.items()}
    for row, control in PLAIN.items():
        assert calls[f"{row} + IEC"] == calls[f"{row}, {control}"] != calls[row]
    assert calls["W8A8"] == {"full": 15} and calls["W8A8 + IEC"] == {"full": 30}
    assert calls["DeepCache N=5 + IEC"] == {"full": 6, "cached": 12}


@pytest.mark.parametrize(
    ("name", "override", "values"),
    [
        ("bundled", "sampler.steps=10", "sampler.steps=15 or 31"),
        ("bundled", "iec=all_steps", "iec=none or all_steps or heun"),
        ("ablation_lambda", "iec.lambda=0.3", "iec.lambda=default or 0.1 or 0.3 or 0.7 or 1.0"),
        ("table1", "+model=ddim_cifar", "model=ddim_cifar or ldm_lsun_church or ldm_lsun_bedroom"),
    ],
)
def test_an_override_of_all_rows_that_contradicts_labels_is_refused(name, override, values):
    scale = None if name == "bundled" else "paper"
    with pytest.raises(ConfigError, match=f"rows alike that differ: {values}. Leave it out, or change the rows in a copy"):
        Experiment.read(Path(name), [override], scale)
    assert Experiment.read(Path(name), ["num_images=64", "seed=1"], scale).rows


def test_an_override_of_what_all_rows_agree_in_is_taken():
    assert all(
        own[-1] == "sampler.steps=10" for own in Experiment.read(Path("table1"), ["sampler.steps=10"], "small").rows.values()
    )


def test_a_file_that_is_not_there_is_refused_with_the_names_that_are(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no experiment file bundledd\. .*: .*bundled, controls, "):
        Experiment.read(Path("bundledd"))
    with pytest.raises(ConfigError, match="There is no experiment file"):
        Experiment.read(tmp_path / "mine.yaml")
