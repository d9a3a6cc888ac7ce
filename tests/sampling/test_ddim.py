"""The loop against closed forms, against diffusers, and against the calls it is allowed to make."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, UNet2DModel

from iec.errors import ConfigError, NonFiniteError
from iec.models.unet import UNetNetwork
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork, Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

SHAPE = (3, 8, 8)
DDPM, LDM = NoiseSchedule(), NoiseSchedule("scaled_linear", 0.00085, 0.012)
NOISE = Noise(0, (0, 1, 2), SHAPE)
ALL = Placement("all_steps")


def run(sampler, network, noise=NOISE):
    return list(sampler.trajectory(network, noise))


def tiny_unet():
    return UNet2DModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def test_gaussian_data_is_sampled_in_closed_form():
    """For x_0 ~ N(0, v) the exact eps is linear in x, and every DDIM step a known factor."""
    v, table = 0.25, Timetable.spaced("uniform", 10, DDPM)

    def network(x, step, cond=None, cache=None):
        a = DDPM.at(step.timestep)
        return Prediction(x * np.sqrt(1 - a) / (a * v + 1 - a))

    factors = table.A + table.B * np.sqrt(1 - table.abar_t) / (table.abar_t * v + 1 - table.abar_t)
    states = run(Sampler(table), network)
    assert len(states) == 11
    torch.testing.assert_close(states[-1], states[0] * float(np.prod(factors)), rtol=1e-12, atol=1e-12)
    fine = run(Sampler(Timetable.spaced("uniform", 1000, DDPM)), network)
    assert fine[-1].std().item() == pytest.approx(v**0.5 * fine[0].std().item(), rel=2e-2)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(
    ("schedule", "spacing", "final", "options"),
    [
        (DDPM, "uniform", -1, {"set_alpha_to_one": True}),
        (LDM, "leading_plus_one", 0, {"set_alpha_to_one": False, "steps_offset": 1}),
    ],
)
def test_ddim_equals_diffusers(schedule, spacing, final, options, eta):
    unet = tiny_unet()
    theirs = DDIMScheduler(
        beta_start=schedule.beta_start, beta_end=schedule.beta_end, beta_schedule=schedule.kind,
        clip_sample=False, timestep_spacing="leading", **options,
    )  # fmt: skip
    theirs.set_timesteps(10)
    network = UNetNetwork(unet)
    x = NOISE.initial(torch.float32)
    with torch.no_grad():
        for i, t in enumerate(theirs.timesteps):
            x = theirs.step(unet(x, t).sample, t, x, eta=eta, variance_noise=NOISE.of_step(i, torch.float32)).prev_sample
    ours = run(Sampler(Timetable.spaced(spacing, 10, schedule, final=final, eta=eta)), network)[-1]
    torch.testing.assert_close(ours.float(), x, rtol=1e-4, atol=1e-4)


def test_no_correction_is_the_base_sampler_bit_for_bit_with_the_same_noise():
    table, unet = Timetable.spaced("quad", 6, DDPM, eta=1.0), UNetNetwork(tiny_unet())
    base = run(Sampler(table), unet)
    for other in (
        Sampler(table, Correction(0), ALL),
        Sampler(table, Correction(), Placement("none")),
        Sampler(table, Correction(1, (0.0,)), ALL),
    ):
        assert all(torch.equal(a, b) for a, b in zip(base, run(other, unet), strict=True))


def test_a_correction_is_the_formula_of_the_paper(linear_network):
    table, m = Timetable.spaced("uniform", 4, DDPM, eta=0.5), 0.3
    states = run(Sampler(table, Correction(2, (0.5,), 0.0), ALL), linear_network(m))
    x = states[0]
    for i in range(4):
        fixed = table.A[i] * x + table.sigma[i] * NOISE.of_step(i)  # noise drawn once a step
        y = fixed + table.B[i] * m * x
        for _ in range(2):
            y = y + 0.5 * (fixed + table.B[i] * m * y - y)
        torch.testing.assert_close(states[i + 1], y, rtol=1e-12, atol=1e-12)
        x = states[i + 1]


def test_calls_and_what_each_is_told(linear_network):
    table = Timetable.spaced("quad", 100, DDPM)
    network = linear_network(0.1)
    counting = CountingNetwork(network)
    run(Sampler(table, Correction(), Placement("first_last", count=6)), counting)
    assert (counting.calls.full, counting.calls.correction, counting.calls.cached) == (
        3 * 96,
        3 * (6 + 3),
        0,
    )  # 96, 97, 98 are no-ops
    assert counting.calls.total == sum(images for _, images in network.steps)
    corrections = [step for step, _ in network.steps if step.correction]
    assert [step.index for step in corrections] == [0, 1, 2, 3, 4, 5, 94, 95, 99]
    assert all(step.timestep == table.pairs[step.index][0] for step, _ in network.steps)


def test_duplicated_steps_cost_nothing_and_change_nothing(linear_network):
    table = Timetable.spaced("quad", 100, DDPM)
    states = run(Sampler(table, Correction(), ALL), linear_network(0.1))
    for i in (93, 96, 97, 98):
        assert states[i + 1] is states[i]


@pytest.mark.parametrize(("moving", "corrections"), [((), 1), ((2,), 3), ((0, 1, 2), 3)])
def test_a_batch_is_corrected_until_all_of_it_has_converged(moving, corrections):
    """The other images sit on the fixed point (eps = 0); every call is one of the whole batch, and counted as such."""
    moves = torch.tensor([n in moving for n in range(3)]).view(-1, 1, 1, 1)

    def network(x, step, cond=None, cache=None):
        return Prediction(0.4 * x * moves)

    counting, table = CountingNetwork(network), Timetable.from_timesteps([500], DDPM, final=200)
    start, end = run(Sampler(table, Correction(3, (0.5,), 1e-5), ALL), counting)
    assert (counting.calls.full, counting.calls.correction) == (3, 3 * corrections)
    still = ~moves.flatten()
    assert torch.equal(end[still], (table.A[0] * start + table.B[0] * 0.4 * start * moves)[still])


def test_a_batch_that_converges_in_parts_is_its_images_alone():
    """Images of a batch stop at different corrections; alone they save the calls, and are the same."""
    scales = torch.tensor([1e-6, 0.01, 1.0], dtype=torch.float64)

    def images(*which):
        def network(x, step, cond=None, cache=None):
            return Prediction(0.4 * x * scales[list(which)].view(-1, 1, 1, 1))

        sampler = Sampler(Timetable.spaced("uniform", 4, DDPM, eta=0.3), Correction(3, (0.5,), 0.05), ALL)
        counting = CountingNetwork(network)
        return run(sampler, counting, Noise(0, which, SHAPE))[-1], counting.calls.correction

    together, calls = images(0, 1, 2)
    alone, own = zip(*(images(n) for n in range(3)), strict=True)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
    assert own[0] == 4 and len(set(own)) > 1 and max(own) <= calls / 3 <= 3 * 4 and sum(own) < calls


@pytest.mark.parametrize("cache_from", ["first", "last"])
def test_a_frozen_image_keeps_the_feature_of_its_last_evaluation(cache_from):
    """The feature is the input: a frozen image's is what it was evaluated at before it froze, its batch-mates' is the newest."""
    inputs, cached = [], []

    def network(x, step, cond=None, cache=None):
        (inputs if step.mode == "full" else cached).append(x if cache is None else cache.feature)
        return Prediction(0.4 * x * torch.tensor([1e-6, 1e-6, 1.0]).view(-1, 1, 1, 1), x if step.mode == "full" else None)

    correction = Correction(3, (0.5,), 1e-3, cache_from=cache_from)
    sampler = Sampler(Timetable.spaced("uniform", 2, DDPM), correction, Placement("first_step"), frozenset({0}))
    run(sampler, network)
    assert len(inputs) == 4 and len(cached) == 1
    expected = inputs[0] if cache_from == "first" else torch.cat([inputs[1][:2], inputs[3][2:]])
    assert torch.equal(cached[0], expected)
    assert not torch.equal(inputs[1][:2], inputs[2][:2])  # the criterion is met by the first correction, which is applied


def test_heun_and_iec_are_one_rule_for_a_network_that_ignores_time(linear_network):
    """At every step but the last, where Heun has no second point."""
    table = Timetable.spaced("uniform", 8, DDPM, final=-1)
    iec = Sampler(table, Correction(1, (0.5,), 0.0), Placement("explicit", steps=tuple(range(7))))
    heun = Sampler(table, Correction(1, (0.5,), 0.0, evaluate_at="s"), ALL)
    network = linear_network(0.2)
    for a, b in zip(run(iec, network), run(heun, linear_network(0.2)), strict=True):
        assert torch.equal(a, b)
    assert 7 not in heun.corrected and len(heun.corrected) == 7


def test_the_correction_of_the_step_to_the_clean_image_can_be_left_out():
    """Wherever quad spacing puts that step, whatever the kind of the placement; a latent timetable has no such step."""
    quad, latent = Timetable.spaced("quad", 40, DDPM), Timetable.spaced("uniform", 8, LDM, final=0)
    (clean,) = (i for i, (t, s) in enumerate(quad.pairs) if s == -1 and t != s)
    for placement in (ALL, Placement("first_last", count=2), Placement("explicit", steps=(3, clean))):
        literal, skipping = (Sampler(quad, placement=replace(placement, last_step=how)) for how in ("correct", "skip"))
        assert clean in literal.corrected and skipping.corrected == literal.corrected - {clean}
    assert Sampler(latent, placement=replace(ALL, last_step="skip")).corrected == Sampler(latent, placement=ALL).corrected


def test_heun_equals_diffusers_heun():
    """k-diffusion's Heun in sigma space and ours in DDIM's variable are the same map."""
    unet = tiny_unet()
    theirs = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="linspace")
    theirs.set_timesteps(10)
    grid = [round(float(t)) for t in torch.unique_consecutive(theirs.timesteps)]
    assert grid == pytest.approx([float(t) for t in torch.unique_consecutive(theirs.timesteps)], abs=1e-3)
    start = NOISE.initial(torch.float32)
    x = start * (1 / np.sqrt(DDPM.abar[grid[0]]))  # VE variable of the same state
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(unet(theirs.scale_model_input(x, t), t).sample, t, x).prev_sample
    ours = run(Sampler(Timetable.from_timesteps(grid, DDPM), Correction(1, (0.5,), 0.0, evaluate_at="s"), ALL), UNetNetwork(unet))
    torch.testing.assert_close(ours[-1].float(), x, rtol=2e-3, atol=2e-3)


def test_epsilon_scaling_divides_the_prediction(linear_network):
    table = Timetable.spaced("uniform", 5, DDPM)
    scaled = run(Sampler(table, epsilon_scale=1.02), linear_network(0.51))
    plain = run(Sampler(table), linear_network(0.5))
    torch.testing.assert_close(scaled[-1], plain[-1], rtol=1e-12, atol=1e-12)


def test_states_of_an_image_do_not_depend_on_its_batch_mates():
    unet, table = UNetNetwork(tiny_unet()), Timetable.spaced("quad", 5, DDPM)
    sampler = Sampler(table, Correction(), ALL)
    together = run(sampler, unet)[-1]
    alone = run(sampler, unet, Noise(0, (1,), SHAPE))[-1]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


def test_cache_is_passed_refreshed_and_taken_from_the_named_evaluation():
    """The feature is the mean of the input; a cached call must be given the one of the last full step."""
    table, seen = Timetable.spaced("uniform", 5, DDPM), {}

    def network(x, step, cond=None, cache=None):
        seen[step] = (x.clone(), None if cache is None else cache.feature.clone())
        feature = x.mean(dim=(1, 2, 3)) if step.mode == "full" else None
        return Prediction(0.1 * x, feature)

    for source in ("first", "last"):
        seen.clear()
        run(Sampler(table, Correction(cache_from=source), ALL, refresh=frozenset({0, 3})), network)
        modes = {step.index: step.mode for step in seen}
        assert modes == {0: "full", 1: "cached", 2: "cached", 3: "full", 4: "cached"}
        assert {step.index for step in seen if step.correction} == {0, 3}
        donor = {step.correction: x for step, (x, _) in seen.items() if step.index == 0}[int(source == "last")]
        for step, (_, feature) in seen.items():
            if step.index in (1, 2):
                assert torch.equal(feature, donor.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_output_names_the_step(bad):
    def network(x, step, cond=None, cache=None):
        return Prediction(torch.where(torch.tensor(step.index == 2), bad, 0.1) * x)

    with pytest.raises(NonFiniteError, match=r"step 2 \(timestep 400"):
        run(Sampler(Timetable.spaced("uniform", 5, DDPM)), network)


def test_bad_samplers_are_refused():
    table = Timetable.spaced("uniform", 5, DDPM)
    with pytest.raises(ConfigError, match="epsilon_scale"):
        Sampler(table, epsilon_scale=0.0)
    with pytest.raises(ConfigError, match="first step"):
        Sampler(table, refresh=frozenset({1}))
    with pytest.raises(ConfigError, match=r"0 \.\. 4"):
        Sampler(table, placement=Placement("explicit", steps=(7,)))
