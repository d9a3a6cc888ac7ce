"""IECFlowMatchScheduler by itself: closed forms on Gaussian data, hand-written loops, diffusers' own schedulers."""

import warnings

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

import iec
from iec.errors import ConfigError
from iec.pipelines.flow import IECFlowMatchScheduler
from iec.sampling.correction import Correction
from iec.sampling.placement import Placement
from tests.tiny_pipelines import X, wave


def loop(scheduler, network, x, begin=0):
    """What every pipeline does, from an entry on: the last state."""
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(network(x, float(t)), t, x).prev_sample
    return x


def by_hand(sigmas, network, x, lambdas=(0.5,), corrected=None, heun=False, labels=None):
    """y <- y + lambda (x_t + (s - t) F(y, t) - y) over the levels ``sigmas`` [T + 1], in their dtype; states in float64."""
    labels = labels or [1000 * float(s) for s in sigmas]
    x = x.double()
    for i, dt in enumerate((sigmas[1:] - sigmas[:-1]).tolist()):
        y = x + dt * network(x, labels[i])
        for weight in lambdas if corrected is None or i in corrected else ():
            y = y + weight * (x + dt * network(y, labels[i + heun]) - y)
        x = y
    return x


def plain(**options):
    return FlowMatchEulerDiscreteScheduler(**options)


GAUSS = {  # c, shift, T -> Euler, all steps corrected, all but the last, Heun
    (0.5, 1, 4): (0.3405, 0.4026, 0.4013, 0.4327), (0.5, 1, 10): (0.4308, 0.4547, 0.4539, 0.4908),
    (0.5, 1, 28): (0.4742, 0.4828, 0.4825, 0.4990), (0.5, 3, 4): (0.2121, 0.3338, 0.2302, 0.2272),
    (0.5, 3, 10): (0.3697, 0.3947, 0.3935, 0.4214), (0.5, 3, 28): (0.4503, 0.4592, 0.4585, 0.4885),
    (0.1, 3, 4): (0.0099, 0.2774, 0.0110, 0.0100), (0.1, 3, 10): (0.0283, 0.1580, 0.0344, 0.0290),
    (0.1, 3, 28): (0.0625, 0.0975, 0.0778, 0.0688),
}  # fmt: skip


@pytest.mark.parametrize("case", GAUSS)
def test_gaussian_data_end_at_their_closed_form(case):
    """Data N(0, c^2), whose velocity is x (t - (1 - t) c^2) / (t^2 + (1 - t)^2 c^2). The default leaves the last step out."""
    c, shift, steps = case

    def velocity(x, label):
        t = label / 1000
        return x * (t - (1 - t) * c**2) / (t**2 + (1 - t) ** 2 * c**2)

    settings = {"placement": "none"}, {"last_step": "correct"}, {}, {"evaluate_at": "s"}
    for options, expected in zip(settings, GAUSS[case], strict=True):
        scheduler = IECFlowMatchScheduler(shift=shift, **options)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
        assert loop(scheduler, velocity, torch.ones(1, 1).double()).item() == pytest.approx(expected, abs=6e-5)


KINDS = {
    "shift": ({"shift": 3.0}, {"num_inference_steps": 6}),
    "dynamic shift": ({"use_dynamic_shifting": True}, {"sigmas": [1, 0.75, 0.5, 0.25], "mu": 0.8}),
    "terminal shift": ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, {"num_inference_steps": 5, "mu": 1.1}),
    "given sigmas": ({"shift": 3.0}, {"sigmas": [1.0, 0.8, 0.5, 0.1]}),
    "timesteps beside sigmas": ({}, {"sigmas": [1.0, 0.8, 0.5], "timesteps": [999.0, 700.0, 350.0]}),
    "inverted": ({"invert_sigmas": True}, {"num_inference_steps": 5}),
    "Karras levels": ({"use_karras_sigmas": True}, {"num_inference_steps": 5}),
    "equal levels": ({}, {"sigmas": [1.0, 0.6, 0.6, 0.3]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_loop_by_hand_on_the_levels_of_diffusers(kind):
    options, arguments = KINDS[kind]
    theirs = plain(**options)
    theirs.set_timesteps(**arguments)
    labels, steps = [*theirs.timesteps.tolist(), None], len(theirs.timesteps)
    levels = theirs.sigmas
    for settings, changes, everywhere in (
        ({"iterations": 2, "lambdas": [0.5, 0.3]}, {"lambdas": (0.5, 0.3)}, range(steps - 1)),
        ({"placement": "first_last", "count": 1, "last_step": "correct"}, {}, (0, steps - 1)),
        ({"preset": "official_latent"}, {"lambdas": (1.0, 0.5)}, range(steps - 1)),
        ({"evaluate_at": "s", "last_step": "correct"}, {"heun": True}, range(steps - 1)),
    ):
        ours = IECFlowMatchScheduler(**options, **settings)
        ours.set_timesteps(**arguments)
        corrected = {i for i in everywhere if levels[i] != levels[i + 1]}
        assert {i for i, k in ours.run.calls if k} == corrected and len(ours.sigmas) == len(ours.timesteps) + 1
        expected = by_hand(levels, wave, X, corrected=corrected, labels=labels, **changes)
        torch.testing.assert_close(loop(ours, wave, X.double()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_without_corrections_it_is_diffusers_scheduler_bit_for_bit(kind, dtype):
    options, arguments = KINDS[kind]
    results = []
    for scheduler in (plain(**options), IECFlowMatchScheduler(**options, placement="none")):
        scheduler.set_timesteps(**arguments)
        results.append(loop(scheduler, lambda x, t: wave(x.float(), t).to(dtype), X.to(dtype)))
    assert torch.equal(*results) and results[1].dtype == dtype


def test_heun_is_diffusers_heun():
    theirs, ours = FlowMatchHeunDiscreteScheduler(shift=3.0), IECFlowMatchScheduler(shift=3.0, evaluate_at="s")
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(7)
    assert torch.equal(theirs.timesteps, ours.timesteps) and torch.equal(theirs.sigmas, ours.sigmas)
    torch.testing.assert_close(loop(ours, wave, X), loop(theirs, wave, X), rtol=1e-5, atol=1e-5)


def test_a_tolerance_keeps_converged_images():
    scheduler = IECFlowMatchScheduler(iterations=3, tolerance=1e9, placement="first_step")
    scheduler.set_timesteps(4)
    once = IECFlowMatchScheduler(iterations=1, placement="first_step")
    once.set_timesteps(4)
    assert torch.equal(loop(scheduler, wave, X), loop(once, wave, X)) and len(scheduler.timesteps) == 7


def test_pipelines_start_where_the_uncorrected_run_does():
    """By steps: at timesteps[t_start * order:]. By sigmas: pipelines take the entries for steps, and round down."""
    for k in (1, 2, 3):
        for steps in (4, 7, 10):
            ours = IECFlowMatchScheduler(iterations=k)
            ours.set_timesteps(steps)
            assert ours.order == 1 + k and len(ours.timesteps) == (1 + k) * steps - k
            listed = IECFlowMatchScheduler(iterations=k, last_step="correct")
            for t_start in range(steps):
                ours.set_begin_index(t_start * ours.order)
                assert ours.next_call(plain_at(steps, t_start)) == (t_start, 0)
            for strength in (0.15, 0.3, 0.45, 0.6, 0.85, 1.0):
                listed.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
                entries = len(listed.timesteps)
                entry = int(entries - entries * strength)
                t = listed.timesteps[entry]
                listed.set_begin_index(entry * listed.order)
                assert listed.order == 1 and listed.next_call(t) == (int(steps - steps * strength), 0)
                torch.testing.assert_close(listed.scale_noise(0 * X, t[None], X), t / 1000 * X)


def plain_at(steps, i):
    scheduler = plain()
    scheduler.set_timesteps(steps)
    return scheduler.timesteps[i]


def test_a_run_that_begins_at_a_correction_has_fewer_of_them():
    """With sigmas [1, 0.6, 0.3] and K = 2, entry 4 is the first correction of step 1: one is left to correct with."""
    scheduler = IECFlowMatchScheduler(iterations=2, lambdas=[0.5, 0.2], last_step="correct")
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3])
    for entry in (1, 0, 4):  # the last one counts
        scheduler.set_begin_index(entry)
    levels = torch.tensor([0.6, 0.3, 0.0]).double()
    x = X.double() + (0.3 - 0.6) * wave(X.double(), 600.0)
    y = x + 0.5 * (X.double() - 0.3 * wave(x, 600.0) - x)
    expected = by_hand(levels[1:], wave, y, lambdas=(0.5, 0.2))
    labelled = lambda x, t: wave(x, round(t))  # noqa: E731  # their levels are float32
    torch.testing.assert_close(loop(scheduler, labelled, X.double(), 4), expected, rtol=1e-6, atol=1e-6)


def test_a_start_that_cannot_be_told_is_refused_and_the_ways_out_work():
    listed = {"sigmas": [1.0, 0.8, 0.5, 0.2]}
    scheduler = IECFlowMatchScheduler()
    scheduler.set_timesteps(**listed)
    scheduler.set_begin_index(0)
    with pytest.raises(ConfigError, match="with last_step='correct'"):
        scheduler.set_begin_index(3)
    for way_out in ({"last_step": "correct"}, {"placement": "none"}):
        other = IECFlowMatchScheduler.from_config(scheduler.config, **way_out)
        other.set_timesteps(**listed)
        other.set_begin_index(3)
    some = IECFlowMatchScheduler(placement="first_step")
    some.set_timesteps(5)
    with pytest.raises(ConfigError, match="if only some are repeated"):
        some.set_begin_index(2)


@pytest.mark.parametrize("set_begin", [False, True])
def test_noise_is_added_at_the_level_of_the_state(set_begin):
    """Between the calls of a step the state is at s already, whatever timestep it is asked for by."""
    scheduler = IECFlowMatchScheduler(shift=2.0, last_step="correct")
    scheduler.set_timesteps(4)
    theirs = plain(shift=2.0)
    theirs.set_timesteps(4)
    assert torch.equal(
        scheduler.scale_noise(X, theirs.timesteps[[2, 0, 3]], X), theirs.scale_noise(X, theirs.timesteps[[2, 0, 3]], X)
    )
    if set_begin:
        scheduler.set_begin_index(0)
    x, noise, entries = X, X.flip(0), scheduler.timesteps
    for p, t in enumerate(entries[:-1]):
        x = scheduler.step(wave(x, float(t)), t, x).prev_sample
        sigma = theirs.sigmas[p // 2 + 1]
        assert torch.equal(scheduler.scale_noise(X, entries[p + 1][None], noise), sigma * noise + (1 - sigma) * X)
        assert scheduler.sigmas[scheduler.step_index] == sigma


def test_runs_follow_each_other_with_other_numbers_of_steps_and_after_an_exception():
    scheduler, fresh = IECFlowMatchScheduler(shift=3.0), {}
    for steps in (4, 9):
        one = IECFlowMatchScheduler(shift=3.0)
        one.set_timesteps(steps)
        fresh[steps] = loop(one, wave, X)
    for steps in (4, 9, 4):
        scheduler.set_timesteps(steps)
        scheduler.step(wave(X, 1000.0), scheduler.timesteps[0], X)  # and then something fails
        scheduler.set_timesteps(steps)
        assert torch.equal(loop(scheduler, wave, X), fresh[steps])
    with pytest.raises(ConfigError, match="Call set_timesteps"):
        scheduler.step(X, 500.0, X)


def test_it_is_saved_and_loaded(tmp_path):
    options = {"shift": 3.0, "use_dynamic_shifting": True, "iterations": 2, "lambdas": [1.0, 0.5], "evaluate_at": "s"}
    IECFlowMatchScheduler(**options, placement="first_last", count=1).save_pretrained(tmp_path)
    loaded = IECFlowMatchScheduler.from_pretrained(tmp_path)
    assert loaded.correction == Correction(2, (1.0, 0.5), tolerance=0.0, evaluate_at="s")
    assert loaded.placement == Placement("first_last", count=1, last_step="skip")
    assert all(loaded.config[key] == value for key, value in options.items())
    old = plain(shift=2.5, max_shift=0.9, time_shift_type="linear")
    new = IECFlowMatchScheduler.from_config(old.config)
    assert all(new.config[key] == value for key, value in old.config.items() if not key.startswith("_"))
    assert FlowMatchEulerDiscreteScheduler.from_config(new.config).config["shift"] == 2.5
    old.register_to_config(shift_terminal=0.02)  # still noted as a default
    assert IECFlowMatchScheduler.from_config(old.config).config["shift_terminal"] == 0.02
    assert iec.IECFlowMatchScheduler is IECFlowMatchScheduler


REFUSED = {
    "FlowMatchLCMScheduler": ({}, "distilled sampler", lambda: IECFlowMatchScheduler.from_config(plain().config)),
    "FlowMatchHeunDiscreteScheduler": (
        {"shift": 3.0}, "evaluate_at='s' makes them Heun's", lambda: IECFlowMatchScheduler(shift=3.0, evaluate_at="s"),
    ),
    "UniPCMultistepScheduler": (
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
        r"multistep solver.*IECFlowMatchScheduler\(shift=3.0\)", lambda: IECFlowMatchScheduler(shift=3.0),
    ),
    "DDIMScheduler": ({}, "IECScheduler.from_config", lambda: iec.IECScheduler.from_config(diffusers.DDIMScheduler().config)),
    "EDMEulerScheduler": ({}, "is not FlowMatchEulerDiscreteScheduler", lambda: IECFlowMatchScheduler(shift=1.0)),
    "FlowMatchEulerDiscreteScheduler": (
        {"stochastic_sampling": True}, "noises x_0 anew", lambda: IECFlowMatchScheduler.from_config(
            plain(stochastic_sampling=True).config, stochastic_sampling=False
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_schedulers_are_refused_by_name_with_a_way_out(name, tmp_path):
    options, message, way_out = REFUSED[name]
    other = getattr(diffusers, name)(**options)
    with pytest.raises(ConfigError, match=message):
        IECFlowMatchScheduler.from_config(other.config)
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        IECFlowMatchScheduler.from_config(getattr(diffusers, name).from_pretrained(tmp_path).config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        way_out().set_timesteps(3)


def test_misuse_is_refused():
    with pytest.raises(ConfigError, match="noises x_0 anew"):
        IECFlowMatchScheduler(stochastic_sampling=True)
    with pytest.raises(TypeError, match="iteration"):
        IECFlowMatchScheduler(iteration=2)
    for wrong in ({"placement": "some"}, {"preset": "mine"}, {"evaluate_at": "r"}, {"iterations": 2, "lambdas": [1, 1, 1]}):
        with pytest.raises(ConfigError):
            IECFlowMatchScheduler(**wrong)
    scheduler = IECFlowMatchScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ConfigError, match="per_token_timesteps"):
        scheduler.step(X, scheduler.timesteps[0], X, per_token_timesteps=torch.ones(3, 2))
    scheduler.step(X, scheduler.timesteps[0], X)
    with pytest.raises(ConfigError, match="is not that of call 1 of the 5"):
        scheduler.step(X, scheduler.labels[2], X)
