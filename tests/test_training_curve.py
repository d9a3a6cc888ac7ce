"""scripts/training_curve.py: its rows and its picture."""

import pytest

from iec.errors import ConfigError
from iec.metrics.interval import Interval
from iec.tables.measured import Measured
from scripts import training_curve
from scripts.training_curve import CORRECTIONS, checkpoints, draw, experiment_of


def test_checkpoints_are_in_the_order_of_the_images_that_they_have_seen():
    assert checkpoints(["1.5M=b", "0.8M=a", "12M=c"]) == {"0.8M": "a", "1.5M": "b", "12M": "c"}


@pytest.mark.parametrize(
    "given", [["0.8=a", "1M=b"], ["-1M=a", "1M=b"], ["xM=a", "1M=b"], ["nanM=a", "1M=b"], ["0.8M", "1M=b"], ["0.8M=", "1M=b"]]
)
def test_what_is_no_checkpoint_is_refused(given):
    with pytest.raises(ConfigError, match="1.5M=DIR"):
        checkpoints(given)


def test_a_number_of_images_is_that_of_one_checkpoint():
    with pytest.raises(ConfigError, match="Give each number of images once"):
        checkpoints(["1M=a", "1.0M=b"])


def test_one_checkpoint_is_no_curve():
    with pytest.raises(ConfigError, match="two checkpoints"):
        checkpoints(["1M=a"])
    assert list(checkpoints(["0.8M=DIR", "1.5M=DIR"])) == ["0.8M", "1.5M"]


def test_every_checkpoint_is_corrected_and_not_and_compared_with_the_last():
    experiment = experiment_of("ddim_fashion_small", {"0.8M": "a", "1M": "b"}, ["num_images=4"])
    assert experiment.references == ("1M",)
    assert experiment.rows["0.8M"] == ["model=ddim_fashion_small", "model.weights=a", "iec=none", "num_images=4"]
    assert list(experiment.rows) == [images + ending for images in ("0.8M", "1M") for ending in CORRECTIONS]


def test_the_curve_has_a_line_for_each_correction(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(training_curve, "save", lambda figure, *_: drawn.append(figure))
    values = {"1M": 9.0, "1M + IEC": 8.0, "1M + Heun": 7.0, "2M": 6.0, "2M + IEC": 5.0, "2M + Heun": 4.0}
    rows = [
        Measured(label, 4, {"FID": Interval(value, value - 1, value + 1)}, {"FID": False}, None, None, None, 0)
        for label, value in values.items()
    ]
    draw(rows, ["1M", "2M"], tmp_path / "training.png", "title")
    lines = [line.get_ydata().tolist() for line in drawn[0].axes[0].get_lines()]
    assert lines == [[9, 6], [8, 5], [7, 4]]
