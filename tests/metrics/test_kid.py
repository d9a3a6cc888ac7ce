import numpy as np
import pytest

from iec.errors import MetricError
from iec.metrics import mmd as module
from iec.metrics.kid import kid, kid_of_resamples

draw = np.random.default_rng(0)


def brute_force(x, y):
    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("height", [2, 5, 1024])
def test_equals_the_definition_whatever_the_block(monkeypatch, height):
    monkeypatch.setattr(module, "HEIGHT", height)
    x, y = draw.standard_normal((7, 3)), draw.standard_normal((11, 3)) + 0.5
    assert kid(x, y) == pytest.approx(brute_force(x, y), rel=1e-12)


def test_closed_form_in_one_dimension():
    """x = 1, 1 and y = 0, 0: kernels 8, 1 and 1."""
    assert kid(np.ones((2, 1)), np.zeros((2, 1))) == pytest.approx(8 + 1 - 2)


def test_unbiased_where_both_sides_have_one_distribution():
    values = [kid(draw.standard_normal((20, 4)), draw.standard_normal((30, 4))) for _ in range(2000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(2000)
    assert min(values) < 0


def test_a_resample_leaves_out_pairs_with_a_copy():
    x, y, counts = draw.standard_normal((4, 3)), draw.standard_normal((5, 3)), np.array([[2, 0, 1, 1]])
    picked = [0, 0, 2, 3]
    gram = (x @ x.T / 3 + 1) ** 3
    pairs = [(i, j) for i in picked for j in picked if i != j]
    own = np.mean([gram[i, j] for i, j in pairs])
    cross = np.mean([((x[i] @ r) / 3 + 1) ** 3 for i in picked for r in y])
    rest = brute_force(x, y) - np.mean(gram[~np.eye(4, dtype=bool)]) + 2 * np.mean((x @ y.T / 3 + 1) ** 3)
    assert kid_of_resamples(x, y, counts)[0] == pytest.approx(own + rest - 2 * cross, rel=1e-12)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((1, 2)), np.zeros((3, 2))),
        (np.zeros((3, 2)), np.zeros((1, 2))),
        (np.zeros((3, 2)), np.zeros((3, 4))),
        (np.zeros((3, 2, 1)), np.zeros((3, 2))),
        (np.full((3, 2), np.nan), np.zeros((3, 2))),
    ],
)
def test_refusals(x, y):
    with pytest.raises(MetricError):
        kid(x, y)
