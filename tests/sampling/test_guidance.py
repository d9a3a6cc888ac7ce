import pytest
import torch

from iec.errors import ConfigError
from iec.sampling.guidance import GuidedNetwork, guided, unet_batch
from iec.sampling.network import FeatureCache, Prediction, Step

STEP = Step(0, 500)


class Branches:
    """eps = x + mean of cond; the feature is x, or what was cached plus one. Remembers what it was given."""

    def __call__(self, x, step, cond=None, cache=None):
        self.x, self.cond, self.cache = x, cond, cache
        feature = x if cache is None else cache.feature + 1
        return Prediction(x + cond.mean(dim=(1, 2))[:, None, None, None], feature)


@pytest.fixture
def batch():
    return torch.randn(3, 2, 4, 4), torch.randn(3, 2, 5, 6)


@pytest.mark.parametrize("scale", [1.5, 7.5])
def test_the_formula_with_the_unconditional_branch_first(batch, scale):
    x, cond = batch
    network = Branches()
    eps = GuidedNetwork(network, scale)(x, STEP, cond).eps
    assert torch.equal(network.x, torch.cat([x, x])) and torch.equal(network.cond, torch.cat([cond[:, 0], cond[:, 1]]))
    u, c = (x + cond[:, k].mean(dim=(1, 2))[:, None, None, None] for k in (0, 1))
    torch.testing.assert_close(eps, u + scale * (c - u))


def test_scale_one_evaluates_the_conditional_branch_alone(batch):
    x, cond = batch
    network = Branches()
    prediction = GuidedNetwork(network, 1.0)(x, STEP, cond)
    assert torch.equal(network.x, x) and torch.equal(network.cond, cond[:, 1]) and prediction.feature.shape == (3, 1, 2, 4, 4)
    GuidedNetwork(network, 1.0)(x, STEP, cond, FeatureCache(prediction.feature, STEP))
    assert torch.equal(network.cache.feature, x)


def test_features_of_both_branches_travel_with_their_image(batch):
    x, cond = batch
    network, step = Branches(), Step(1, 400, "cached")
    guided_network = GuidedNetwork(network, 2.0)
    feature = guided_network(x, STEP, cond).feature
    assert feature.shape == (3, 2, 2, 4, 4) and torch.equal(feature[:, 0], x) and torch.equal(feature[:, 1], x)
    feature = torch.stack([torch.full((2, 2, 4, 4), float(n)) for n in range(3)])
    feature[:, 1] += 0.5
    chosen = torch.tensor([2, 0])
    again = guided_network(x[chosen], step, cond[chosen], FeatureCache(feature[chosen], STEP)).feature
    assert network.cache.feature[:, 0, 0, 0].tolist() == [2, 0, 2.5, 0.5]
    assert torch.equal(again, feature[chosen] + 1)


@pytest.mark.parametrize("cond", [None, torch.zeros(3, 5, 6), torch.zeros(2, 2, 5, 6)])
def test_another_cond_is_refused(batch, cond):
    with pytest.raises(ConfigError, match=r"\[3, 2, \.\.\.\]"):
        GuidedNetwork(Branches(), 2.0)(batch[0], STEP, cond)


def test_without_guidance_the_network_is_left_as_it_is():
    network = Branches()
    assert guided(network, None) is network


def test_the_branches_of_an_image_stay_together_in_calibration(batch):
    x, cond = batch
    batched, conditions = unet_batch(2.0, x, cond)
    assert torch.equal(batched[::2], x) and torch.equal(batched[1::2], x)
    assert torch.equal(conditions[::2], cond[:, 0]) and torch.equal(conditions[1::2], cond[:, 1])
    batched, conditions = unet_batch(1.0, x, cond)
    assert torch.equal(batched, x) and torch.equal(conditions, cond[:, 1])
    assert unet_batch(None, x, None)[0] is x
