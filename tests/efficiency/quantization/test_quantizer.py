import pytest
import torch

from iec.efficiency.quantization.quantizer import CANDIDATES, search_scale
from tests.efficiency.quantization.grid import fake_quantize


def by_the_formula(x, delta, zero_point, bits):
    """The definition, term by term."""
    z = torch.round(zero_point)
    return (torch.clamp(torch.round(x / delta) + z, 0, 2**bits - 1) - z) * delta


def score(x, delta, zero_point, bits):
    return (x - by_the_formula(x, delta, zero_point, bits)).abs().pow(2.4).mean()


def search_one(x, bits):
    """The search as a plain loop over candidates, for one slice."""
    best, result = float("inf"), None
    for i in range(0, 80, 2):
        low, high = x.min() * (1.0 - i * 0.01), x.max() * (1.0 - i * 0.01)
        delta = (high - low) / (2**bits - 1)
        zero_point = (-low / delta).round()
        value = score(x, delta, zero_point, bits)
        if value < best:
            best, result = value, (delta, zero_point)
    return result


SHAPES = {
    "normal": lambda x: x,
    "heavy tails": lambda x: x**3,
    "silu": torch.nn.functional.silu,
    "positive": lambda x: x.abs() + 0.1,
    "negative": lambda x: -x.abs() - 0.1,
    "softmax": lambda x: x.flatten(1).softmax(1).view_as(x),
}


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_channels_are_searched_as_if_each_were_alone(shape, bits):
    x = SHAPES[shape](torch.randn(7, 5, 3, 3))
    delta, zero_point = search_scale(x, bits, per_channel=True)
    expected = [search_one(channel, bits) for channel in x]
    assert torch.equal(delta, torch.stack([d for d, _ in expected]))
    assert torch.equal(zero_point, torch.stack([z for _, z in expected]))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_tensor_gets_the_winner_of_the_plain_search(shape, bits):
    x = SHAPES[shape](torch.randn(6, 50000))  # several chunks: partial sums settle most candidates
    delta, zero_point = search_scale(x, bits)
    expected = search_one(x, bits)
    assert (delta, zero_point) == expected


def test_scaling_down_the_range_is_tried_and_pays_with_outliers():
    x = torch.cat([torch.linspace(-1, 1, 10000), torch.tensor([-3.0, 3.0])])
    delta, _ = search_scale(x, 4)
    assert len(CANDIDATES) == 40 and CANDIDATES[-1] == pytest.approx(0.22)
    assert float(delta) < 0.6 * 6 / 15


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_search_is_never_worse_than_the_full_range(shape, bits):
    x = SHAPES[shape](torch.randn(4096)) if shape != "softmax" else torch.randn(4096).softmax(0)
    delta, zero_point = search_scale(x, bits)
    full = (x.max() - x.min()) / (2**bits - 1)
    assert score(x, delta, zero_point, bits) <= score(x, full, (-x.min() / full).round(), bits)


@pytest.mark.parametrize("rule", ["mse", "max"])
def test_error_inside_the_range_and_fixed_points(rule):
    x = torch.randn(5000)
    delta, zero_point = search_scale(x, 8, rule)
    xq = fake_quantize(x, delta, zero_point, 8)
    assert torch.equal(xq, by_the_formula(x, delta, zero_point, 8))
    inside = (x >= -zero_point * delta) & (x <= (255 - zero_point) * delta)
    assert inside.float().mean() > 0.9
    assert ((xq - x).abs()[inside] <= delta / 2 * (1 + 1e-5)).all()
    assert torch.equal(fake_quantize(xq, delta, zero_point, 8), xq)
    assert len(xq.unique()) <= 256


def test_halves_go_to_the_even_neighbour():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    xq = fake_quantize(x, torch.tensor(1.0), torch.tensor(8.0), 4)
    assert xq.tolist() == [-2, -2, 0, 0, 2, 2]


def test_a_fractional_zero_point_is_rounded_where_it_is_used():
    x = torch.linspace(-20, 20, 99)
    for fractional, whole in [(7.4, 7.0), (7.5, 8.0), (8.5, 8.0)]:
        one = fake_quantize(x, torch.tensor(1.0), torch.tensor(fractional), 4)
        assert torch.equal(one, fake_quantize(x, torch.tensor(1.0), torch.tensor(whole), 4))


def test_division_is_by_delta_not_by_its_reciprocal():
    delta = torch.tensor(0.03)
    x = (torch.arange(-(2**15), 2**15) + 0.5) * delta  # quotients on the edge between two levels
    xq = fake_quantize(x, delta, torch.tensor(2.0**15), 16)
    exact = (x / delta.expand_as(x).contiguous()).round().clamp(-(2**15), 2**15 - 1) * delta
    assert torch.equal(xq, exact)
    assert not torch.equal((x * (1 / delta)).round() * delta, exact)


@pytest.mark.parametrize("rule", ["mse", "max"])
@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 3e-5, -1e-12])
def test_a_constant_slice_is_reproduced(rule, value):
    x = torch.full((3, 20), value)
    for per_channel, shape in [(True, (3,)), (False, ())]:
        delta, zero_point = search_scale(x, 4, rule, per_channel=per_channel)
        assert delta.shape == zero_point.shape == shape
        assert (delta > 0).all() and torch.isfinite(delta).all() and torch.isfinite(zero_point).all()
        view = (3, 1) if per_channel else ()
        assert torch.equal(fake_quantize(x, delta.view(view), zero_point.view(view), 4), x)


def test_a_zero_channel_does_not_disturb_its_neighbours():
    x = torch.randn(3, 50)
    x[1] = 0
    delta, zero_point = search_scale(x, 4, per_channel=True)
    for c in (0, 2):
        assert (delta[c], zero_point[c]) == search_one(x[c], 4)
    assert fake_quantize(x, delta[:, None], zero_point[:, None], 4)[1].eq(0).all()


def test_one_sided_slices_use_their_own_range():
    x = torch.linspace(5, 6, 1000)
    delta, zero_point = search_scale(x, 8)
    assert float(delta) == pytest.approx(1 / 255, rel=1e-4)
    assert float(zero_point) == pytest.approx(-5 * 255, abs=1)
    assert (fake_quantize(x, delta, zero_point, 8) - x).abs().max() <= 1.01 * delta / 2


def test_max_rule():
    delta, zero_point = search_scale(torch.tensor([-1.0, 0.3, 2.0]), 8, "max")
    assert float(delta) == pytest.approx(3 / 255) and float(zero_point) == 85
    delta, zero_point = search_scale(torch.tensor([1.0, 3.0]), 8, "max")  # raw extremes, but z as if the range held 0
    assert float(delta) == pytest.approx(2 / 255) and float(zero_point) == 0


def test_a_sample_scores_fewer_elements_but_keeps_the_extremes():
    x = torch.randn(300000)
    exact, sampled = search_scale(x, 8), search_scale(x, 8, samples=50000)
    candidates = [s * float(x.max() - x.min()) / 255 for s in CANDIDATES]
    assert min(abs(float(sampled[0]) / c - 1) for c in candidates) < 1e-6
    assert float(sampled[0]) == pytest.approx(float(exact[0]), rel=0.05)
    assert search_scale(x, 8, samples=10**9) == exact


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="median"):
        search_scale(torch.randn(4), 8, "median")
