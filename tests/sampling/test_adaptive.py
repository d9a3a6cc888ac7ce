"""Refresh that each image decides: patterns known by hand, and each image as if it were alone with its own schedule."""

from dataclasses import replace

import pytest
import torch

from iec.correctors.affine import AffineTables
from iec.correctors.dcw import DCW
from iec.correctors.es import EpsilonScaling
from iec.correctors.es_search import EpsilonSearch
from iec.correctors.restart import Restart
from iec.correctors.stepback import Stepback
from iec.correctors.timeshift import TimeShift
from iec.correctors.unic import UniC
from iec.efficiency.caching.forecast import REUSE, Extrapolated, Probed, newton, taylor
from iec.errors import ConfigError
from iec.sampling.adaptive import AdaptiveRefresh
from iec.sampling.correction import Correction
from iec.sampling.corrector import NO_CORRECTOR
from iec.sampling.ddim import Sampler, takes_single_steps
from iec.sampling.guidance import GuidedNetwork
from iec.sampling.multistep import with_solver
from iec.sampling.network import Calls, CountingNetwork, FeatureCache, Prediction, Step
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.spaced("uniform", 20, NoiseSchedule(num_timesteps=1000), eta=0.5)
FIRST = frozenset({0})
SLOPES = {0.0: [0, 1], 0.5: [0, 1, 7, 15], 1.0: [0, 1, 4, 10], 5.0: [0, 1, 2, 6, 12]}
"""Slope c -> where the rule with threshold 2.6 refreshes a feature of 1 + c i. Its rate between u_1 and u_0 is c / (1 + c u_1): for
c = 5 it is 5, 5/6, 5/11, 5/31, so that 0, 3, 5 and 16 steps reuse.
"""
RULE = AdaptiveRefresh(2.6)
COND = torch.tensor(list(SLOPES), dtype=torch.float64)
NOISE = Noise(3, (5, 2, 9, 4), (1, 2, 2))


class Linear:
    """Features 1 + c i, with ``drift`` of the state in them; cond: c of each image. Remembers who made which full calls."""

    def __init__(self, forecast=REUSE, drift=0.0):
        self.forecast, self.drift, self.refreshed = forecast, drift, {}

    def __call__(self, x, step, cond=None, cache=None):
        made = None
        if step.mode == "full":
            made = feature = (1 + cond * step.index).view(-1, 1, 1, 1) * (1 + self.drift * x.tanh())
            for slope in cond.tolist() if step.correction == 0 else ():
                self.refreshed.setdefault(slope, []).append(step.index)
        else:
            feature = self.forecast.feature(cache, step, (1 + 0.1 * x.sin()) * (step.index + 1))
        probe = (1 + 0.1 * x.sin()) * (step.index + 1) if made is not None and self.forecast.needs_probe else None
        return Prediction((0.3 + step.timestep / 1e4) * x.tanh() + 0.1 * feature, made, probe, self.forecast.history)


def sampler(table=TABLE, rule=RULE, **options):
    return Sampler(table, refresh=FIRST, adaptive=rule, **options)


def final(of, network, noise=NOISE, cond=COND):
    return list(of.trajectory(network, noise, cond))[-1]


def test_images_of_one_batch_refresh_where_the_rule_says_and_calls_are_counted_by_image():
    network = Linear()
    counting = CountingNetwork(network)
    final(sampler(), counting)
    assert network.refreshed == SLOPES
    full = sum(map(len, SLOPES.values()))
    assert counting.calls == Calls(full=full, cached=len(SLOPES) * 20 - full)


def test_a_smaller_threshold_refreshes_more_and_the_smallest_at_every_step_that_changes_the_feature():
    network = Linear()
    final(sampler(rule=AdaptiveRefresh(1e-9)), network)
    assert network.refreshed == {slope: list(range(20)) if slope else [0, 1] for slope in SLOPES}


CORRECTIONS = {
    "none": {},
    "iec": {"correction": Correction(2, (0.5, 0.3), 0), "placement": Placement("all_steps")},
    "iec, stopped early": {"correction": Correction(3, (0.5,), 0.03), "placement": Placement("all_steps")},
    "first_last": {"correction": Correction(), "placement": Placement("first_last", count=5)},
    "cached": {"correction": Correction(tolerance=0), "placement": Placement("all_steps", cached_steps="cached")},
    "full": {"correction": Correction(tolerance=0), "placement": Placement("explicit", steps=(3, 9), cached_steps="full")},
    "heun": {"correction": Correction(tolerance=0, evaluate_at="s", renorm=True), "placement": Placement("all_steps")},
}
FORECASTS = {
    "none": REUSE,
    "linear": Extrapolated(taylor, 1),
    "newton": Extrapolated(newton, 3),
    "clock": Extrapolated(newton, 2, tuple(float(i**1.5) for i in range(20))),
    "probe": Probed(),
}


@pytest.mark.parametrize("forecast", FORECASTS)
@pytest.mark.parametrize("corrections", CORRECTIONS)
def test_an_image_is_what_it_is_alone_with_its_steps_as_an_explicit_schedule(forecast, corrections):
    """Also its corrections: those of the steps where it refreshes. And so it does not depend on its batch-mates."""
    network = Linear(FORECASTS[forecast], drift=0.2)
    together = final(sampler(**CORRECTIONS[corrections]), network)
    assert len({tuple(steps) for steps in network.refreshed.values()}) > 2
    for b, slope in enumerate(SLOPES):
        alone = Sampler(TABLE, refresh=frozenset(network.refreshed[slope]), **CORRECTIONS[corrections])
        single = final(alone, Linear(FORECASTS[forecast], drift=0.2), NOISE.of([b]), COND[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], single, rtol=1e-12, atol=1e-12)


CORRECTORS = {
    "unic": UniC(),
    "unic at full calls": UniC("full"),
    "dcw": DCW(low=0.1, high=0.05),
    "es": EpsilonScaling(1.01, 0.001),
    "timeshift": TimeShift(window=60, cutoff=0, data_variance=0.5),
}


@pytest.mark.parametrize("corrections", ["none", "cached", "heun"])
@pytest.mark.parametrize("name", CORRECTORS)
def test_a_corrector_corrects_an_image_as_if_it_were_alone(name, corrections):
    """Also one that looks back at the step before, which some images took in another batch."""
    options, forecast = {**CORRECTIONS[corrections], "corrector": CORRECTORS[name]}, FORECASTS["clock"]
    network = Linear(forecast, drift=0.2)
    together = final(sampler(**options), network)
    assert not together.equal(final(sampler(**CORRECTIONS[corrections]), Linear(forecast, drift=0.2)))
    assert len({tuple(steps) for steps in network.refreshed.values()}) > 2
    for b, slope in enumerate(SLOPES):
        alone = Sampler(TABLE, refresh=frozenset(network.refreshed[slope]), **options)
        single = final(alone, Linear(forecast, drift=0.2), NOISE.of([b]), COND[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], single, rtol=1e-12, atol=1e-12)


def test_under_guidance_both_branches_of_an_image_refresh_together():
    forecast = Extrapolated(newton, 2)
    network = Linear(forecast, drift=0.2)
    cond = torch.stack([COND / 2, COND], dim=1)
    together = final(sampler(), GuidedNetwork(network, 3.0), NOISE, cond)
    patterns = {slope: steps for slope, steps in network.refreshed.items() if slope > 0.5}
    assert patterns[1.0] != patterns[5.0]
    for b, slope in ((2, 1.0), (3, 5.0)):
        alone = Sampler(TABLE, refresh=frozenset(patterns[slope]))
        single = final(alone, GuidedNetwork(Linear(forecast, drift=0.2), 3.0), NOISE.of([b]), cond[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], single, rtol=1e-12, atol=1e-12)


def test_a_step_that_changes_nothing_refreshes_nothing_and_what_is_due_waits():
    timesteps = [*range(950, 550, -50), 600, *range(550, 0, -50), 10]
    timesteps.insert(4, timesteps[4])  # step 4 goes nowhere: it is where c = 1 would refresh
    table = Timetable.from_timesteps(sorted(timesteps, reverse=True)[:20], NoiseSchedule())
    assert table.is_noop(4)
    network = Linear()
    final(sampler(table), network)
    assert network.refreshed[1.0][:3] == [0, 1, 5]


def test_a_feature_of_zeros_or_of_nan_never_counts_as_unchanged():
    older = FeatureCache(torch.tensor([[0.0], [1.0], [1.0]]), Step(0, 9))
    cache = replace(older, feature=torch.tensor([[0.0], [float("nan")], [1.0]]), step=Step(1, 8), earlier=(older,))
    assert RULE.due(cache, 2, 3) == [True, True, False]


def test_a_batch_whose_images_agree_is_not_split():
    sizes = []

    def network(x, step, cond=None, cache=None):
        sizes.append(len(x))
        return Linear()(x, step, torch.ones(len(x), dtype=torch.float64), cache)

    final(sampler(), network)
    assert sizes == [4] * 20


@pytest.mark.parametrize("threshold", [0, -1.0, float("inf"), float("nan"), True, "0.3"])
def test_a_threshold_that_means_nothing_is_refused_and_what_is_named_works(threshold):
    with pytest.raises(ConfigError, match=r"finite number above 0.*e\.g\. 0\.3"):
        AdaptiveRefresh(threshold)
    AdaptiveRefresh(0.3)


def test_what_needs_steps_known_before_or_the_whole_batch_is_refused_and_the_ways_out_work():
    with pytest.raises(ConfigError, match=r"use refresh=\{0\}"):
        Sampler(TABLE, adaptive=RULE)
    tables = AffineTables(torch.ones(20, 1), torch.zeros(20, 1))
    for corrector in (Stepback(), tables, Restart()):
        message = f"{type(corrector).__name__}.* corrector=none, es, es_search, unic, dcw or timeshift, or another schedule"
        with pytest.raises(ConfigError, match=message):
            sampler(corrector=corrector)
    for corrector in (NO_CORRECTOR, EpsilonSearch(), *CORRECTORS.values()):
        sampler(corrector=corrector)
    official = {"correction": Correction.preset("official_ddpm"), "placement": Placement("all_steps")}
    with pytest.raises(ConfigError, match=r"iec\.norm=image"):
        sampler(**official)
    assert sampler(**official | {"correction": replace(official["correction"], norm="image")}).corrected
    deterministic = sampler(replace(TABLE, eta=0.0))
    with pytest.raises(ConfigError, match="sampler=ddim, or another schedule"):
        with_solver("unipc", deterministic)
    assert with_solver("ddim", deterministic) == deterministic
    assert with_solver("unipc", replace(deterministic, adaptive=None)).refresh == FIRST
    assert not takes_single_steps(deterministic)
