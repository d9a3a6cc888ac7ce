"""IECScheduler by itself, in the loop that every pipeline runs: against iec.Sampler and against DDIMScheduler."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    PNDMScheduler,
)

from iec.errors import ConfigError
from iec.pipelines.scheduler import IECScheduler
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.tiny_pipelines import (
    LATENT,
    Given,
    X,
    seeded,
    table_of,
    wave,
)


def loop(scheduler, network, x, **kwargs):
    """What every pipeline does: the states, from the first on."""
    states = [x]
    for t in scheduler.timesteps:
        states.append(scheduler.step(network(states[-1], int(t)), t, states[-1], **kwargs).prev_sample)
    return states


def by_sampler(table, correction, placement, network=wave, noises=()):
    states = Sampler(table, correction, placement).trajectory(
        lambda x, step, cond=None, cache=None: Prediction(network(x, step.timestep)), Given(X, noises)
    )
    return list(states)[-1].float()


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_list_of_timesteps_with_its_own_pairs(eta):
    """quad spacing, whose steps have no common length and whose last ones coincide."""
    schedule = NoiseSchedule()
    table = Timetable.spaced("quad", 40, schedule, eta=eta)
    assert any(table.is_noop(i) for i in range(40))
    scheduler = IECScheduler(clip_sample=False, placement="first_last", fraction=0.25)
    scheduler.set_timesteps(timesteps=[t for t, _ in table.pairs])
    placement, noises = Placement("first_last", fraction=0.25), [torch.randn(X.shape) for _ in range(40)]
    at = [i for i, k in scheduler.run.calls if k == 0]
    assert at == list(range(40)) and {i for i, k in scheduler.run.calls if k} == Sampler(table, placement=placement).corrected
    x = X
    for t in scheduler.timesteps:
        z = noises[scheduler.call(t).index]
        x = scheduler.step(wave(x, int(t)), t, x, eta=eta, variance_noise=z).prev_sample
    expected = by_sampler(table, Correction(tolerance=0), placement, noises=noises)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_the_correction_of_the_last_step_can_be_left_out_and_is_again_after_saving(tmp_path):
    IECScheduler(clip_sample=False, last_step="skip").save_pretrained(tmp_path)
    scheduler = IECScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 19 and scheduler.order == 2  # as Heun's list is
    table = table_of(scheduler.config, list(range(900, -1, -100)))
    expected = by_sampler(table, Correction(tolerance=0), Placement("all_steps", last_step="skip"))
    torch.testing.assert_close(loop(scheduler, wave, X)[-1], expected, rtol=1e-4, atol=1e-4)
    scheduler.set_begin_index(9 * scheduler.order)  # all steps before the last have two entries: every start is where it should
    scheduler.set_timesteps(timesteps=[900, 800, 700])
    with pytest.raises(ConfigError, match="with last_step='correct'"):  # pipelines count 5 entries as steps here
        scheduler.set_begin_index(2)
    literal = IECScheduler.from_config(scheduler.config, last_step="correct")
    literal.set_timesteps(timesteps=[900, 800, 700])
    assert literal.order == 1
    literal.set_begin_index(2)


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 10), ("trailing", 7), ("linspace", 9)])
def test_steps_end_where_the_next_ones_begin(spacing, steps):
    scheduler = IECScheduler(clip_sample=False, timestep_spacing=spacing)
    theirs = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert torch.equal(scheduler.timesteps[::2], theirs.timesteps) and torch.equal(scheduler.timesteps[1::2], theirs.timesteps)
    table = table_of(scheduler.config, theirs.timesteps.tolist())
    expected = by_sampler(table, Correction(tolerance=0), Placement("all_steps"))
    torch.testing.assert_close(loop(scheduler, wave, X)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_predictions_are_corrected_through_what_they_predict(kind, zero_snr):
    """Against A x_t + B F(y) by hand in float64, A and B in the form of F. For v it is a rotation, finite where abar_t = 0."""
    options = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": zero_snr, "clip_sample": False}
    scheduler = IECScheduler(**options, iterations=2, lambdas=[0.5, 0.3], prediction_type=kind)
    scheduler.set_timesteps(5)
    abar = [*scheduler.alphas_cumprod.double()[[999, 799, 599, 399, 199]], torch.tensor(1.0).double()]
    assert scheduler.timesteps.tolist()[::3] == [999, 799, 599, 399, 199] and (abar[0] == 0) == zero_snr
    x = X.double()
    for t, a, b in zip([999, 799, 599, 399, 199], abar, abar[1:], strict=False):
        if kind == "v_prediction":
            cos = (a * b) ** 0.5 + ((1 - a) * (1 - b)) ** 0.5
            sin = (b * (1 - a)) ** 0.5 - (a * (1 - b)) ** 0.5
            of_x, of_f = cos, -sin
        else:
            of_x = ((1 - b) / (1 - a)) ** 0.5
            of_f = b**0.5 - a**0.5 * of_x
        y = of_x * x + of_f * wave(x, t)
        for weight in (0.5, 0.3):
            y = y + weight * (of_x * x + of_f * wave(y, t) - y)
        x = y
    torch.testing.assert_close(loop(scheduler, wave, X.double())[-1], x, rtol=1e-5, atol=1e-5)  # their abar is float32


@pytest.mark.parametrize("options", [{"clip_sample": True}, {"thresholding": True, "sample_max_value": 1.5}])
@pytest.mark.parametrize("use_clipped", [False, True])
def test_clipping_acts_on_every_target(options, use_clipped):
    """A correction is DDIMScheduler's own step from x_t, with the output at the corrected state, mixed in."""
    scheduler, theirs = IECScheduler(**options), DDIMScheduler(**options)
    scheduler.set_timesteps(8)
    theirs.set_timesteps(8)
    x = X
    for t in theirs.timesteps:

        def target(y, t=t, x=x):
            return theirs.step(wave(y, int(t)), t, x, use_clipped_model_output=use_clipped).prev_sample

        y = target(x)
        x = y + 0.5 * (target(y) - y)
    assert (theirs.step(wave(X, 875), 875, X).pred_original_sample.abs().max()) <= 1.5  # there was something to clip
    torch.testing.assert_close(loop(scheduler, wave, X, use_clipped_model_output=use_clipped)[-1], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["image", "batch"])
@pytest.mark.parametrize("criterion", ["change", "residual"])
def test_a_tolerance_freezes_the_same_images_as_our_sampler_and_saves_no_call(criterion, norm):
    options = {"tolerance": 2e-2, "criterion": criterion, "norm": norm}
    scheduler = IECScheduler(clip_sample=False, iterations=6, **options)
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 70
    scale = torch.tensor([0.02, 0.3, 1.0]).view(3, 1, 1, 1)

    def network(x, t):
        """Every image converges at its own rate."""
        return wave(x, t) * scale

    table, last = table_of(scheduler.config, list(range(900, -1, -100))), loop(scheduler, network, X)[-1]
    expected = by_sampler(table, Correction(6, (0.5,), **options), Placement("all_steps"), network)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    endless = by_sampler(table, Correction(6, (0.5,), 0.0), Placement("all_steps"), network)
    assert (expected - endless).abs().max() > 10 * (last - expected).abs().max()  # something was frozen


def test_scheduler_is_saved_and_loaded(tmp_path):
    scheduler = IECScheduler.from_config(LATENT.config, iterations=2, lambdas=[1.0, 0.5], placement="first_last", count=1)
    scheduler.save_pretrained(tmp_path)
    loaded = IECScheduler.from_pretrained(tmp_path)
    assert (loaded.correction, loaded.placement) == (scheduler.correction, scheduler.placement)
    assert loaded.correction == Correction(2, (1.0, 0.5), tolerance=0.0) and loaded.placement == Placement("first_last", count=1)
    for kept in (loaded, DDIMScheduler.from_config(loaded.config)):
        assert all(kept.config[key] == LATENT.config[key] for key in LATENT.config if not key.startswith("_"))
    from_other = IECScheduler.from_config(PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012, steps_offset=1).config)
    assert (from_other.config["beta_end"], from_other.config["steps_offset"]) == (0.012, 1)
    again = IECScheduler.from_config(loaded.config, placement="none", count=None)
    assert again.placement == Placement() and again.correction == loaded.correction


def test_half_precision_is_computed_in_float32():
    scheduler = IECScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    half, x = loop(scheduler, lambda y, t: wave(y.float(), t).half(), X.half()), X
    assert {state.dtype for state in half} == {torch.float16}
    scheduler.set_timesteps(10)
    torch.testing.assert_close(half[-1].float(), loop(scheduler, wave, x)[-1], rtol=1e-2, atol=5e-2)
    scheduler.set_timesteps(10)  # one rounding a call, none inside
    t, out = scheduler.timesteps[0], wave(X, 900).half()
    first = scheduler.step(out, t, X.half()).prev_sample
    scheduler.set_timesteps(10)
    assert torch.equal(first, scheduler.step(out.float(), t, X.half().float()).prev_sample.half())


def test_views_can_keep_their_own_state():
    """MultiDiffusion (the panorama pipeline) saves and restores the scheduler's __dict__ around every view's step."""
    shared, single = IECScheduler(clip_sample=False), IECScheduler(clip_sample=False)
    views = [X, X.flip(0)]
    shared.set_timesteps(6)
    kept = [copy.deepcopy(shared.__dict__) for _ in views]
    for t in shared.timesteps:
        for i, view in enumerate(views):
            shared.__dict__.update(kept[i])
            views[i] = shared.step(wave(view, int(t)), t, view).prev_sample
            kept[i] = copy.deepcopy(shared.__dict__)
    for start, view in zip([X, X.flip(0)], views, strict=True):
        single.set_timesteps(6)
        assert torch.equal(loop(single, wave, start)[-1], view)


def helped(network, scheduler, found):
    """A network wrapped as DeepCacheSDHelper 0.1.1 wraps a UNet's forward: it looks its step up in the list of timesteps."""

    def forward(x, t):
        found.append(list(scheduler.timesteps).index(t))
        return network(x, t)

    return forward


def test_deepcache_helper_is_refused_at_the_first_correction():
    scheduler, found = IECScheduler(clip_sample=False, placement="explicit", steps=[2]), []
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match=r"DeepCacheSDHelper.* iec\.apply\(pipe, cache=\.\.\.\)"):
        loop(scheduler, helped(wave, scheduler, found), X)
    assert found == [0, 1, 2]  # right so far
    scheduler.set_timesteps(10)  # the way out for anybody else
    assert len(scheduler.timesteps) == 11


def test_timesteps_can_be_looked_up_where_they_tell_the_step():
    """Without corrections in every call; with them before the run, and after it."""
    plain, found = IECScheduler(clip_sample=False, placement="none"), []
    plain.set_timesteps(10)
    loop(plain, helped(wave, plain, found), X)
    assert found == list(range(10))
    corrected = IECScheduler(clip_sample=False)
    corrected.set_timesteps(10)
    before = corrected.timesteps
    loop(corrected, wave, X)
    assert torch.equal(corrected.timesteps, before) and len(before) == 20


def test_misuse_is_refused():
    scheduler = IECScheduler(clip_sample=False, iterations=2)
    with pytest.raises(ConfigError, match="Call set_timesteps"):
        scheduler.step(X, 901, X)
    with pytest.raises(ConfigError, match="one of them"):
        scheduler.set_timesteps(10, timesteps=[5, 1])
    with pytest.raises(ConfigError, match="Step 0 goes"):
        scheduler.set_timesteps(timesteps=[1, 5])
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="not the first call.* multiple of order = 3"):
        scheduler.set_begin_index(4)
    scheduler.set_begin_index(6)
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="Entry -1 is none"):
        scheduler.set_begin_index(-1)
    scheduler.step(X, 900, X)
    with pytest.raises(ConfigError, match="Timestep 800 is not that of call 1"):
        scheduler.step(X, 800, X)
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="not both"):
        scheduler.step(X, 900, X, eta=1.0, variance_noise=X, generator=seeded())
    scheduler.set_timesteps(1)
    loop(scheduler, wave, X)
    with pytest.raises(ConfigError, match="call 3 of the 3"):
        scheduler.step(X, 0, X)
    for wrong in ({"prediction_type": "flow"}, {"placement": "some"}, {"preset": "mine"}, {"iterations": 2, "lambdas": [1, 1, 1]}):
        with pytest.raises(ConfigError):
            IECScheduler(**wrong)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_correction_before_the_first_step_is_passed_over(eta):
    """``denoising_start`` with order = 2: the run is that of the remaining steps, and its noise too."""
    scheduler, listed = IECScheduler(clip_sample=False), IECScheduler(clip_sample=False)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(5)
    listed.set_timesteps(timesteps=scheduler.timesteps[6::2])
    states = []
    for one, first in ((scheduler, 5), (listed, 0)):
        x, generator = X, seeded()
        for t in one.timesteps[first:]:
            x = one.step(wave(x, int(t)), t, x, eta=eta, generator=generator).prev_sample
        states.append(x)
    assert torch.equal(*states)
