import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from iec.errors import MetricError
from iec.metrics import precision_recall as module
from iec.metrics.precision_recall import precise, recalled, squared_radii
from tests.metrics import adm

draw = np.random.default_rng(0)
GENERATED = (0.7 * draw.standard_normal((60, 5)) + 0.4).astype(np.float32)
REAL = draw.standard_normal((80, 5)).astype(np.float32)


def test_by_hand_on_a_line():
    """Neighbours at k = 1: the real images at 0, 1, 10 reach 1, 1, 9."""
    real, generated = np.array([[0.0], [1.0], [10.0]]), np.array([[2.0], [2.5], [19.5], [-1.5], [-1.0]])
    np.testing.assert_array_equal(squared_radii(real, 1), [1, 1, 81])
    np.testing.assert_array_equal(precise(generated, real, 1), [True, True, False, False, True])  # the last one just
    np.testing.assert_array_equal(recalled(generated, real, 1), [False, False, True])  # generated reach 0.5, 0.5, 17, 0.5, 0.5


def test_equals_the_other_implementations():
    ours = precise(GENERATED, REAL).mean(), recalled(GENERATED, REAL).mean()
    assert 0.2 < ours[1] < ours[0] < 1
    assert ours == pytest.approx(adm.precision_recall(REAL, GENERATED), abs=0)
    assert ours == pytest.approx(calculate_precision_recall_full(torch.from_numpy(GENERATED), torch.from_numpy(REAL)), abs=1e-7)


@pytest.mark.parametrize("entries", [1, 200, 999])
def test_the_strip_height_changes_nothing(monkeypatch, entries):
    whole = precise(GENERATED, REAL), recalled(GENERATED, REAL)
    monkeypatch.setattr(module, "ENTRIES", entries)
    np.testing.assert_array_equal(precise(GENERATED, REAL), whole[0])
    np.testing.assert_array_equal(recalled(GENERATED, REAL), whole[1])


def test_far_from_the_origin_and_with_copies():
    assert precise(GENERATED + 1000, REAL + 1000).mean() == pytest.approx(precise(GENERATED, REAL).mean(), abs=0.02)
    np.testing.assert_array_equal(squared_radii(np.repeat(REAL[:3], 4, axis=0)), np.zeros(12))
    assert precise(REAL, REAL).all() and recalled(REAL, REAL).all()
    assert not precise(REAL + 100, REAL).any()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (GENERATED, REAL[:3], "3 images have no 3-th neighbour"),
        (GENERATED, REAL[:, :4], "one d"),
        (np.full_like(GENERATED, np.nan), REAL, "NaN"),
    ],
)
def test_refusals(x, y, message):
    with pytest.raises(MetricError, match=message):
        precise(x, y)
