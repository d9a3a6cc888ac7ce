"""IECEulerScheduler by itself: hand-written loops, DDIM in other variables, diffusers' own scheduler."""

import warnings

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

import iec
from iec.errors import ConfigError
from iec.pipelines.euler import IECEulerScheduler
from iec.pipelines.scheduler import IECScheduler
from iec.sampling.correction import Correction
from tests.tiny_pipelines import X, wave

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V_ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
KINDS = {
    "published SDXL": ({**SD, "timestep_spacing": "leading", "steps_offset": 1}, {"num_inference_steps": 6}),
    "fractional timesteps": (SD, {"num_inference_steps": 7}),
    "Karras levels": ({**SD, "use_karras_sigmas": True}, {"num_inference_steps": 5}),
    "given sigmas": (SD, {"sigmas": [12.0, 5.0, 1.5, 0.3, 0.0]}),
    "given timesteps": (SD, {"timesteps": [900, 500, 100]}),
    "not to the clean image": ({**SD, "final_sigmas_type": "sigma_min"}, {"num_inference_steps": 4}),
    "v": ({**SD, "prediction_type": "v_prediction"}, {"num_inference_steps": 5}),
    "v, zero SNR": ({**SD, **V_ZERO}, {"num_inference_steps": 5}),
    "v, continuous": ({**SD, "prediction_type": "v_prediction", "timestep_type": "continuous"}, {"num_inference_steps": 4}),
    "x_0": ({**SD, "prediction_type": "sample"}, {"num_inference_steps": 5}),
}


def loop(scheduler, network, x, begin=0):
    """What every pipeline does, from an entry on: the last state."""
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
    return x


def by_hand(scheduler, kind, x, lambdas):
    """z <- z + lambda (A z_t + B F(z / sqrt(sigma_s^2 + 1), t) - z), in float64, on the levels of a scheduler of diffusers."""
    x, sigmas = x.double(), scheduler.sigmas.double()
    for label, t, s in zip(scheduler.timesteps.tolist(), sigmas[:-1], sigmas[1:], strict=True):
        ratio, root = s / t - 1, (t**2 + 1) ** 0.5
        a, b = {
            "epsilon": (1.0, s - t), "sample": (s / t, -ratio), "v_prediction": (1 + ratio * t**2 / root**2, (s - t) / root),
        }[kind]  # fmt: skip
        y = a * x + b * wave(x / root, label)
        for weight in lambdas:
            y = y + weight * (a * x + b * wave(y / (s**2 + 1) ** 0.5, label) - y)
        x = y
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_loop_by_hand_on_the_levels_of_diffusers(kind):
    options, arguments = KINDS[kind]
    theirs, ours = EulerDiscreteScheduler(**options), IECEulerScheduler(**options, iterations=2, lambdas=[0.5, 0.3])
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(**arguments)
    moving = int((theirs.sigmas.diff() != 0).sum())  # a step to its own level is not corrected
    assert len(ours.timesteps) == len(theirs.timesteps) + 2 * moving and ours.init_noise_sigma == theirs.init_noise_sigma
    start = X.double() * theirs.init_noise_sigma
    expected = by_hand(theirs, options.get("prediction_type", "epsilon"), start, (0.5, 0.3))
    torch.testing.assert_close(loop(ours, wave, start), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_without_corrections_it_is_diffusers_scheduler_bit_for_bit(kind, dtype):
    options, arguments = KINDS[kind]
    results = []
    for scheduler in (EulerDiscreteScheduler(**options), IECEulerScheduler(**options, placement="none")):
        scheduler.set_timesteps(**arguments)
        start = (X * scheduler.init_noise_sigma).to(dtype)
        results.append(loop(scheduler, lambda x, t: wave(x.float(), t).to(dtype), start))
    assert torch.equal(*results) and results[1].dtype == dtype


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("settings", [{}, {"iterations": 3, "lambdas": 0.7, "last_step": "skip"}, {"placement": "first_step"}])
def test_it_is_ddim_in_other_variables(kind, settings):
    """x = z sqrt(abar): the corrected runs of both forms agree, for every kind of prediction."""
    options = {**SD, "timestep_spacing": "leading", "steps_offset": 1, "prediction_type": kind}
    euler, ddim = IECEulerScheduler(**options, **settings), IECScheduler(**options, clip_sample=False, **settings)
    for scheduler in (euler, ddim):
        scheduler.set_timesteps(6)
    assert euler.timesteps.tolist() == ddim.timesteps.tolist()
    z = X.double() * euler.init_noise_sigma
    x = z / (euler.sigmas[0] ** 2 + 1) ** 0.5
    z = loop(euler, wave, z)
    for t in ddim.timesteps:
        x = ddim.step(wave(x, int(t)), t, x).prev_sample
    torch.testing.assert_close(x, z, rtol=1e-5, atol=1e-5)


def test_the_scale_of_a_correction_is_that_of_the_corrected_state():
    scheduler = IECEulerScheduler(**SD)
    scheduler.set_timesteps(4)
    levels = scheduler.sigmas[::2]
    for p, t in enumerate(scheduler.timesteps):
        sigma = levels[(p + 1) // 2]
        torch.testing.assert_close(scheduler.scale_model_input(X, t), X / (sigma**2 + 1) ** 0.5, rtol=0, atol=0)
        scheduler.step(X, t, X)


def test_noise_is_added_at_the_level_of_the_state():
    scheduler, theirs = IECEulerScheduler(**SD), EulerDiscreteScheduler(**SD)
    for one in (scheduler, theirs):
        one.set_timesteps(5)
    at = theirs.timesteps[[3, 1, 0]]
    assert torch.equal(scheduler.add_noise(X, X, at), theirs.add_noise(X, X, at))
    entries = scheduler.timesteps
    for one, begin in ((scheduler, 4), (theirs, 2)):
        one.set_begin_index(begin)
    assert torch.equal(scheduler.add_noise(X, X, at), theirs.add_noise(X, X, at))  # both at the level of step 2
    x = X
    for p in range(4, 9):
        x = scheduler.step(X, entries[p], x).prev_sample if scheduler.scale_model_input(x, entries[p]) is not None else x
        assert torch.equal(scheduler.add_noise(X, X, entries[p + 1][None]), X + theirs.sigmas[p // 2 + 1] * X)


def test_a_correction_before_the_first_step_is_passed_over():
    """``denoising_start`` with order = 2."""
    scheduler = IECEulerScheduler(**SD)
    states = []
    for begin in (5, 6):
        scheduler.set_timesteps(6)
        entries = scheduler.timesteps[begin:]
        scheduler.set_begin_index(begin)
        x = X
        for t in entries:
            x = scheduler.step(wave(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
        states.append(x)
    assert torch.equal(*states)


def test_starts_of_a_given_list_count_its_entries():
    scheduler = IECEulerScheduler(**SD, iterations=2)
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.order == 1
    scheduler.set_begin_index(6)
    assert scheduler.next_call(100.0) == (2, 0)
    with pytest.raises(ConfigError, match="not the step it means"):
        scheduler.set_begin_index(4)


def test_one_line_takes_the_place_of_euler_and_keeps_what_it_says():
    for options, _ in KINDS.values():
        old = EulerDiscreteScheduler(**options)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            new = IECScheduler.from_config(old.config, iterations=2)
        assert type(new) is IECEulerScheduler and new.correction == Correction(2, tolerance=0)
        assert all(new.config[key] == value for key, value in old.config.items() if not key.startswith("_"))
        assert type(IECScheduler.from_config(new.config)) is IECEulerScheduler
    loaded = {
        **EulerDiscreteScheduler(**SD).config,
        "clip_sample": False,
        "_class_name": "EulerDiscreteScheduler",
    }  # as SDXL's file
    assert type(IECScheduler.from_config(loaded)) is IECEulerScheduler
    assert type(IECScheduler.from_config(loaded, set_alpha_to_one=False)) is IECScheduler  # which DDIM alone has


def test_a_value_that_was_changed_after_construction_is_kept():
    """It is still noted as a default, and diffusers' from_config would put the default back. Pipelines change values so."""
    old = EulerDiscreteScheduler(**SD)
    old.register_to_config(timestep_spacing="trailing")
    assert EulerDiscreteScheduler.from_config(old.config).config["timestep_spacing"] == "linspace"
    assert IECScheduler.from_config(old.config).config["timestep_spacing"] == "trailing"


def test_a_config_that_may_be_eulers_or_ddims_is_not_stripped_of_its_levels():
    old = EulerDiscreteScheduler.from_config(DDIMScheduler(clip_sample=False).config, use_karras_sigmas=True)
    assert IECScheduler.from_config(old.config).config["use_karras_sigmas"] is True
    assert type(IECScheduler.from_config(DDIMScheduler.from_config(old.config).config)) is IECScheduler
    both = {**DDIMScheduler(clip_sample=False).config, **EulerDiscreteScheduler(use_karras_sigmas=True).config}
    with pytest.raises(ConfigError, match="use_karras_sigmas=True"):
        IECScheduler.from_config(both)
    assert type(IECScheduler.from_config(both, use_karras_sigmas=False)) is IECScheduler
    with pytest.raises(ConfigError, match="say so by the name"):
        IECEulerScheduler.from_config(both)
    named = iec.IECEulerScheduler.from_config({**both, "_class_name": "EulerDiscreteScheduler"})
    assert named.config["use_karras_sigmas"] is True


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_other_schedulers_are_refused(name):
    with pytest.raises(ConfigError, match="not known to be EulerDiscreteScheduler"):
        IECEulerScheduler.from_config(getattr(diffusers, name)().config)


def test_it_is_saved_and_loaded(tmp_path):
    IECEulerScheduler(**SD, iterations=2, lambdas=[1.0, 0.5], use_karras_sigmas=True).save_pretrained(tmp_path)
    loaded = IECEulerScheduler.from_pretrained(tmp_path)
    assert loaded.correction == Correction(2, (1.0, 0.5), tolerance=0.0) and loaded.config["use_karras_sigmas"] is True
    back = EulerDiscreteScheduler.from_config(loaded.config)
    assert all(back.config[key] == loaded.config[key] for key in back.config if not key.startswith("_"))


def test_misuse_is_refused():
    with pytest.raises(ConfigError, match="flow_prediction"):
        IECEulerScheduler(prediction_type="flow_prediction")
    scheduler = IECEulerScheduler(**SD)
    scheduler.set_timesteps(3)
    t = scheduler.timesteps[0]
    with pytest.raises(ConfigError, match=r"did not call scale_model_input.*clip_sample=False"):
        scheduler.step(X, t, X)
    scheduler.scale_model_input(X, t)
    with pytest.raises(ConfigError, match="s_churn"):
        scheduler.step(X, t, X, s_churn=1.0)
    scheduler.step(X, t, X)
    with pytest.raises(ConfigError, match="between the calls"):
        scheduler.timesteps.tolist()
    with pytest.raises(ConfigError, match="is not that of call 1 of the 6"):
        scheduler.step(X, scheduler.labels[3], X)
