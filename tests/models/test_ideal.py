"""The optimal denoiser against what is known of it: one image, two images, the density of its noisy data, blocks."""

import numpy as np
import pytest
import torch

from iec.analysis.jacobian import derivatives, eps_at
from iec.errors import ConfigError
from iec.models import ideal
from iec.models.ideal import IdealNetwork
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import Step
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

SCHEDULE = NoiseSchedule()
NOISE = Noise(0, (0, 1, 2), (1, 4, 4))


def images(count, shape=(1, 4, 4)):
    return torch.rand(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(count)) * 2 - 1


def levels(t):
    abar = SCHEDULE.at(t)
    return np.sqrt(abar), np.sqrt(1 - abar)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_with_one_image_the_noise_is_known(t):
    (signal, sigma), data = levels(t), images(1).float()
    z = NOISE.initial()
    network = IdealNetwork(data, SCHEDULE)
    torch.testing.assert_close(network(signal * data.double() + sigma * z, Step(0, t)).eps, z, rtol=1e-10, atol=1e-10)


def test_one_image_is_sampled_exactly_in_any_number_of_steps():
    data = images(1).float()
    for steps in (1, 7):
        *_, last = Sampler(Timetable.spaced("quad", steps, SCHEDULE)).trajectory(IdealNetwork(data, SCHEDULE), NOISE)
        torch.testing.assert_close(last, data.double().expand(3, -1, -1, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variance", [1.0, 2.5])
def test_with_two_images_the_posterior_is_a_logistic_function(variance):
    """The weight of X_1 is 1 / (1 + exp((d_1 - d_2) / (2 k v))), d the squared distances of x / sqrt(abar)."""
    t, (first, second), x = 500, images(2), NOISE.initial()
    signal, sigma = levels(t)
    d1, d2 = (((x / signal - one) ** 2).sum((1, 2, 3), keepdim=True) for one in (first, second))
    weight = 1 / (1 + torch.exp((d1 - d2) / (2 * variance * (sigma / signal) ** 2)))
    expected = (x - signal * (weight * first + (1 - weight) * second)) / sigma
    eps = IdealNetwork(images(2), SCHEDULE, variance)(x, Step(0, t)).eps
    torch.testing.assert_close(eps, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [200, 700])
def test_it_is_the_gradient_of_the_log_density_by_finite_differences(t):
    """log p_t(x) = logsumexp_n(-|x - sqrt(abar) X_n|^2 / (2 (1 - abar))) + const, and its gradient is -eps / sqrt(1 - abar)."""
    (signal, sigma), data = levels(t), images(9)
    x = signal * data[:3] + sigma * NOISE.initial()

    def log_density(point):
        return torch.logsumexp(-((point[:, None] - signal * data) ** 2).sum((2, 3, 4)) / (2 * sigma**2), 1)

    eps, h = IdealNetwork(data, SCHEDULE)(x, Step(0, t)).eps, 1e-4
    for row, column in ((0, 0), (1, 3), (3, 2)):
        shift = torch.zeros_like(x)
        shift[:, 0, row, column] = h
        slope = (log_density(x + shift) - log_density(x - shift)) / (2 * h)
        torch.testing.assert_close(-eps[:, 0, row, column] / sigma, slope, rtol=1e-4, atol=1e-4)


def test_blocks_change_nothing_but_the_memory(monkeypatch):
    """Whatever the order in which larger logits come; and no block is larger than it may be."""
    data, sizes = images(40), []
    x = 0.5 * data[:3] + 0.1 * NOISE.initial()
    whole = [IdealNetwork(data, SCHEDULE)(x, Step(0, t)).eps for t in (10, 300)]
    monkeypatch.setattr(ideal, "VALUES_AT_ONCE", 7 * 16)
    for ordered in (data, data.flip(0)):
        network = IdealNetwork(ordered, SCHEDULE)
        for t, expected in zip((10, 300), whole, strict=True):
            torch.testing.assert_close(network(x, Step(0, t)).eps, expected, rtol=1e-5, atol=1e-5)
        sizes += [len(block) for block, _ in network._blocks(3)]
    assert max(sizes) == 7 and sum(sizes) == 80


def test_values_that_all_images_share_cost_nothing_and_change_nothing():
    """They are known exactly, and the others are predicted as if the shared ones were not there."""
    inner = images(9)
    padded = torch.nn.functional.pad(inner, (1, 1, 1, 1), value=-1)
    (signal, sigma), z = levels(300), Noise(0, (0, 1, 2), (1, 6, 6)).initial()
    x = signal * padded[:3] + sigma * z
    network = IdealNetwork(padded, SCHEDULE)
    eps = network(x, Step(0, 300)).eps
    assert network.data.shape == (9, 16) and network.images.shape == (9, 1, 6, 6)
    torch.testing.assert_close(eps[..., 0, :], z[..., 0, :], rtol=1e-10, atol=1e-10)
    alone = IdealNetwork(inner, SCHEDULE)(x[..., 1:-1, 1:-1], Step(0, 300)).eps
    torch.testing.assert_close(eps[..., 1:-1, 1:-1], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [1, 60, 400])
def test_images_without_a_weight_that_counts_change_nothing(monkeypatch, t):
    data = images(40)
    (signal, sigma), network = levels(t), IdealNetwork(data, SCHEDULE)
    x = signal * data[:3] + sigma * NOISE.initial()
    few = network(x, Step(0, t)).eps
    monkeypatch.setattr(ideal, "NEGLIGIBLE", -1.0)  # all count
    torch.testing.assert_close(few, network(x, Step(0, t)).eps, rtol=1e-6, atol=1e-6)


def test_another_variance_is_another_network_on_the_same_data():
    network = IdealNetwork(images(4), SCHEDULE)
    other = network.with_variance(3.0)
    assert (network.variance, other.variance) == (1.0, 3.0) and other.data is network.data
    with pytest.raises(ConfigError, match="1 is the exact network"):
        network.with_variance(-1.0)


def test_float32_is_close_to_float64_at_every_noise_level():
    """In the setting of the bundled subset: 32 x 32 pixels, data far enough apart that few images are likely at once."""
    data = images(300, (1, 32, 32)).sign() * images(300, (1, 32, 32)).abs().sqrt()
    network, z = IdealNetwork(data, SCHEDULE), Noise(0, (0, 1, 2, 3), (1, 32, 32)).initial()
    between = (data[:4] + data[4:8]) / 2  # two images are equally likely: the hardest case
    for t in (0, 10, 100, 400, 700, 999):
        signal, sigma = levels(t)
        x = signal * between + sigma * z
        y, variance = x / signal, (sigma / signal) ** 2
        stored = data.float().double()
        logits = -((y[:, None] - stored) ** 2).sum((2, 3, 4)) / (2 * variance)
        mean = torch.einsum("bn,nchw->bchw", logits.softmax(1), stored)
        expected = (x - signal * mean) / sigma
        difference = network(x, Step(0, t)).eps - expected
        assert difference.norm() / expected.norm() < 4e-5


def test_a_correction_of_the_step_to_the_clean_image_puts_noise_back():
    """Under the label t a clean image looks like one with little noise: eps is about zero, and lambda of the noise comes back."""
    data = images(1).float()
    table, network = Timetable.spaced("quad", 5, SCHEDULE), IdealNetwork(data, SCHEDULE)
    t = next(t for t, s in table.pairs if s == -1)
    signal, sigma = levels(t)
    literal, skipping = (
        list(Sampler(table, Correction(), Placement("all_steps", last_step=how)).trajectory(network, NOISE))
        for how in ("correct", "skip")
    )
    torch.testing.assert_close(skipping[-1], data.double().expand(3, -1, -1, -1), rtol=1e-10, atol=1e-10)
    # x_t = signal X + sigma z, eps(X, t) = (1 - signal) X / sigma, and the target of the correction is (x_t - sigma eps) / signal
    z = (literal[-2] - signal * data.double()) / sigma
    back = 0.5 * (sigma * z - (1 - signal) * data.double()) / signal
    torch.testing.assert_close(literal[-1] - data.double(), back, rtol=1e-8, atol=1e-8)


def test_analyses_can_differentiate_it():
    """The Jacobian of eps is that of a gradient: symmetric, and forward and reverse mode agree."""
    network, (signal, sigma), t = IdealNetwork(images(5), SCHEDULE), levels(600), 600
    x = signal * images(5)[:3] + sigma * NOISE.initial()
    product, transposed = derivatives(eps_at(network, Step(0, t), None, None), x)
    v = Noise(1, (0, 1, 2), (1, 4, 4)).initial()
    torch.testing.assert_close(product(v), transposed(v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IdealNetwork(torch.zeros(3, 4), SCHEDULE), r"not \[3, 4\]"),
        (lambda: IdealNetwork(torch.zeros(0, 1, 4, 4), SCHEDULE), "one at least"),
        (lambda: IdealNetwork(images(2), SCHEDULE, 0.0), "1 is the exact network"),
        (lambda: IdealNetwork(images(2), SCHEDULE, float("nan")), "1 is the exact network"),
    ],
)
def test_what_it_cannot_be_made_of_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
