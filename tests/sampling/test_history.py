"""The features of the last refreshes: owned by the loop, as many as the network asks for, renewed by every full call."""

from dataclasses import replace

import pytest
import torch

from iec.correctors.restart import Restart
from iec.sampling.correction import Correction
from iec.sampling.corrector import predict
from iec.sampling.ddim import Sampler
from iec.sampling.guidance import GuidedNetwork
from iec.sampling.multistep import MultistepSampler
from iec.sampling.network import FeatureCache, Prediction, Step
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.spaced("uniform", 10, NoiseSchedule())
NOISE = Noise(0, (0, 1), (1, 2, 2))
REFRESH = frozenset({0, 2, 5})


class Watched:
    """Features that tell the call they come from, step + correction / 10; remembers what each call was handed."""

    def __init__(self, history=2):
        self.history, self.handed = history, {}

    def __call__(self, x, step, cond=None, cache=None):
        stored = () if cache is None else cache.stored
        self.handed.setdefault((step.index, step.correction), [round(float(c.feature[0]), 1) for c in stored])
        assert all(torch.equal(c.feature, c.probe) and not c.earlier for c in stored)
        if step.mode == "cached":
            return Prediction(x)
        feature = torch.full((len(x), 1), step.index + step.correction / 10)
        return Prediction(x, feature, feature, self.history)


def handed(network, **options):
    list(Sampler(TABLE, refresh=REFRESH, **options).trajectory(network, NOISE))
    return network.handed


@pytest.mark.parametrize("history", [0, 1, 2, 5])
def test_the_newest_comes_first_and_no_more_are_kept_than_asked_for(history):
    seen = handed(Watched(history))
    assert seen[0, 0] == [] and seen[1, 0] == [0.0]
    assert seen[3, 0] == seen[4, 0] == [2.0, 0.0][: history + 1]
    assert seen[9, 0] == [5.0, 2.0, 0.0][: history + 1]


def test_a_second_run_begins_without_features():
    network = Watched()
    handed(network)
    network.handed = {}
    assert handed(network)[0, 0] == []


def test_a_correction_replaces_the_feature_of_its_own_step_only():
    where = Placement("all_steps")
    seen = handed(Watched(), correction=Correction(2, (0.5, 0.5), 0), placement=where)
    assert seen[2, 1] == seen[2, 2] == [0.2]  # within a step the cache is that from before it
    assert seen[9, 0] == [5.2, 2.2, 0.2]
    first = handed(Watched(), correction=Correction(1, tolerance=0, cache_from="first"), placement=where)
    assert first[9, 0] == [5.0, 2.0, 0.0]


def test_a_full_correction_of_a_cached_step_is_a_refresh_as_it_is_without_a_history():
    steps = Placement("explicit", steps=(3,), cached_steps="full")
    assert handed(Watched(), correction=Correction(tolerance=0), placement=steps)[4, 0] == [3.1, 2.0, 0.0]
    cached = replace(steps, cached_steps="cached")
    assert handed(Watched(), correction=Correction(tolerance=0), placement=cached)[4, 0] == [2.0, 0.0]
    first = Correction(tolerance=0, cache_from="first")
    assert handed(Watched(), correction=first, placement=steps)[4, 0] == [2.0, 0.0]


def test_images_that_converged_keep_feature_and_probe_of_before():
    def network(x, step, cond=None, cache=None):
        feature = torch.full((len(x), 1), float(step.correction))
        eps = x.clone()
        eps[1] += step.correction  # the second image never converges
        return Prediction(eps, feature, -feature, 1)

    sampler = Sampler(TABLE, Correction(3, tolerance=1e-2), Placement("all_steps"), REFRESH)
    x = 1e-3 * NOISE.initial()
    _, cache = sampler.step(network, 5, x, NOISE, None, FeatureCache(torch.zeros(2, 1), Step(2, 700), torch.zeros(2, 1)))
    assert cache.feature.flatten().tolist() == [1, 3] and cache.probe.flatten().tolist() == [-1, -3]
    assert [c.step.index for c in cache.stored] == [5, 2]


def test_after_a_restart_nothing_ahead_is_looked_at():
    network = Watched(3)
    seen = []

    def watching(x, step, cond=None, cache=None):
        seen.append((step.index, [] if cache is None else [c.step.index for c in cache.stored]))
        return network(x, step, cond, cache)

    sampler = Restart(0.3, 2.0, 1).attach(Sampler(TABLE, refresh=frozenset({0, 2, 4, 6})), (1, 2, 2))
    list(sampler.trajectory(watching, NOISE))
    back = next(k for k in range(1, len(seen)) if seen[k][0] < seen[k - 1][0])
    begin = seen[back][0]
    again = dict(seen[back + 1 :])
    assert again[begin + 1] == [s for s in (6, 4, 2, 0) if s <= begin]


@pytest.mark.parametrize("solver", ["dpmsolver", "unipc"])
def test_multistep_solvers_hand_on_the_same_history(solver):
    network = Watched()
    list(MultistepSampler(TABLE, solver, REFRESH).trajectory(network, NOISE))
    assert network.handed == handed(Watched())


def branching(x, step, cond=None, cache=None):
    """Features and probes of each entry of the batch, from its conditioning; eps from what is stored."""
    if step.mode == "full":
        return Prediction(x, cond + step.index, 10 * cond + step.index, 1)
    total = sum(c.feature + c.probe for c in cache.stored)
    return Prediction(total.view(-1, 1, 1, 1) + x)


def test_guidance_keeps_features_and_probes_with_their_branch():
    cond = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).unsqueeze(-1)  # [images, branches, 1]
    network, x = GuidedNetwork(branching, 3.0), torch.zeros(2, 1, 1, 1)
    cache = None
    for i in (0, 4):
        made = network(x, Step(i, 900), cond, cache)
        assert made.feature.shape == made.probe.shape == (2, 2, 1) and made.history == 1
        cache = FeatureCache(made.feature, Step(i, 900), made.probe).after(cache, made.history)
    eps = network(x, Step(5, 800, "cached"), cond, cache).eps.flatten()
    total = 2 * 11 * cond.squeeze(-1) + 2 * (0 + 4)
    assert torch.equal(eps, total[:, 0] + 3 * (total[:, 1] - total[:, 0]))


def test_images_that_are_told_different_timesteps_keep_their_own_features():
    cond, x = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1, 1, 1)
    told = torch.tensor([7, 5, 7])
    made = predict(branching, x, Step(0, 6), told, cond, None)
    assert torch.equal(made.feature, cond) and torch.equal(made.probe, 10 * cond) and made.history == 1
    cache = FeatureCache(made.feature, Step(3, 6), made.probe, (FeatureCache(cond, Step(0, 6), cond),))
    eps = predict(branching, x, Step(4, 6, "cached"), told, cond, cache).eps
    assert torch.equal(eps.flatten(), 13 * cond.flatten())
