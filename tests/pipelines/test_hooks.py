"""Correctors in the scheduler equal those of our sampler; what a pipeline cannot have is refused with a way out."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

import iec
from iec.correctors.affine import Affine, AffineTables
from iec.correctors.dcw import DCW
from iec.correctors.es import EpsilonScaling
from iec.correctors.es_search import EpsilonSearch
from iec.correctors.prepare import fitted
from iec.correctors.restart import Restart
from iec.correctors.stepback import Stepback
from iec.correctors.timeshift import TimeShift
from iec.correctors.unic import UniC
from iec.errors import ConfigError
from iec.pipelines.scheduler import IECScheduler
from iec.sampling.correction import Correction
from iec.sampling.corrector import NO_CORRECTOR
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction
from iec.sampling.placement import Placement
from iec.sampling.timetable import Timetable
from tests.pipelines.test_scheduler import loop
from tests.tiny_pipelines import LATENT, PIXEL, Given, X, table_of, wave

TIMESTEPS = [900, 600, 400, 200, 100, 50, 20, 20]
TABLES = AffineTables(1 + torch.linspace(-0.1, 0.1, 16, dtype=torch.float64).reshape(8, 2), torch.full((8, 2), 0.05).double())
CORRECTORS = [EpsilonScaling(1.02), EpsilonScaling(1.0, 0.01), UniC(), DCW(0.02, 0.01), DCW(0, 0, 0.02), TABLES]


def run(scheduler, eta=0.0, noises=()):
    """What every pipeline does; the noise of a step is given."""
    x = X
    for t in scheduler.timesteps:
        z = noises[scheduler.call(t).index] if eta else None
        x = scheduler.step(wave(x, int(t)), t, x, eta=eta, variance_noise=z).prev_sample
    return x


@pytest.mark.parametrize("corrector", CORRECTORS, ids=lambda corrector: type(corrector).__name__)
@pytest.mark.parametrize(("base", "placement", "eta"), [(PIXEL, "none", 0.0), (LATENT, "none", 0.5), (PIXEL, "all_steps", 0.3)])
def test_a_corrector_is_that_of_our_sampler(corrector, base, placement, eta):
    """Without IEC and with it, without noise and with it, at a step that changes nothing as well; a second run begins anew."""
    scheduler = IECScheduler.from_config(base.config, corrector=corrector, placement=placement)
    table = table_of(scheduler.config, TIMESTEPS, eta)
    noises = [torch.randn(X.shape) for _ in TIMESTEPS]
    sampler = Sampler(table, Correction(tolerance=0), Placement(placement), corrector=corrector)
    trajectory = sampler.trajectory(lambda x, step, *_: Prediction(wave(x, step.timestep)), Given(X, noises))
    expected = list(trajectory)[-1].float()
    for _ in range(2):
        scheduler.set_timesteps(timesteps=TIMESTEPS)
        torch.testing.assert_close(run(scheduler, eta, noises), expected, rtol=1e-4, atol=1e-4)
    scheduler = IECScheduler.from_config(base.config, placement=placement)
    scheduler.set_timesteps(timesteps=TIMESTEPS)
    assert not torch.allclose(run(scheduler, eta, noises), expected, rtol=1e-3, atol=1e-3)


def test_a_fitted_corrector_corrects_the_network_that_it_was_fitted_to():
    model = iec.load_model("ddim_cifar_small", device="cpu")

    def wrong(x, step, cond=None, cache=None):
        return Prediction(1.1 * model.network(x, step, cond, cache).eps)

    timesteps = [800, 400]
    table = Timetable.from_timesteps(timesteps, model.card.schedule)
    fit = fitted(Sampler(table, corrector=Affine(calibration_images=2)), model, wrong).corrector
    x, finals = torch.randn(1, *model.card.shape), []
    for corrector, gain in ((NO_CORRECTOR, 1.0), (fit, 1.1), (NO_CORRECTOR, 1.1)):
        scheduler = IECScheduler.from_config(PIXEL.config, corrector=corrector, placement="none")
        scheduler.set_timesteps(timesteps=timesteps)
        finals.append(loop(scheduler, lambda y, t, gain=gain: gain * model.unet(y, t).sample, x)[-1])
    exact, mended, plain = finals
    assert (mended - exact).abs().max() < 1e-3 < 0.1 < (plain - exact).abs().max()
    scheduler.corrector = fit
    scheduler.set_timesteps(3)
    with pytest.raises(ConfigError, match="fitted to 2 steps .* Fit it again, or sample the 2 steps"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("corrector", [Affine(), Stepback(), EpsilonSearch()], ids=lambda corrector: type(corrector).__name__)
def test_what_is_not_fitted_is_refused(corrector):
    with pytest.raises(ConfigError, match=f"{type(corrector).__name__} has to be fitted first.*prepare.fitted"):
        IECScheduler.from_config(PIXEL.config, corrector=corrector)


@pytest.mark.parametrize("corrector", [TimeShift(), Restart()], ids=lambda corrector: type(corrector).__name__)
def test_what_changes_the_calls_is_refused_and_our_sampler_takes_it(corrector):
    with pytest.raises(ConfigError, match=f"{type(corrector).__name__} tells.*iec.sample"):
        IECScheduler.from_config(PIXEL.config, corrector=corrector)
    assert len(iec.sample(iec.load_model("ddim_cifar_small", device="cpu"), 1, steps=1, corrector=corrector).images) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_sample": True}, "Give clip_sample=False"),
        ({"thresholding": True}, "thresholding=False"),
        ({"prediction_type": "v_prediction"}, "no corrector elsewhere"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "Leave the corrector out"),
        ({"trained_betas": [1e-4, 0.001, 0.02], "num_train_timesteps": 3}, "Leave the corrector out"),
    ],
)
def test_steps_that_are_none_of_ours_are_refused(options, message):
    config = DDIMScheduler(**{"clip_sample": False, **options}).config
    with pytest.raises(ConfigError, match=message):
        IECScheduler.from_config(config, corrector=UniC())
    assert IECScheduler.from_config(config).corrector == NO_CORRECTOR  # left out
    mended = {"clip_sample": False, "thresholding": False}
    if options.keys() <= mended.keys():
        assert IECScheduler.from_config(config, corrector=UniC(), **mended).corrector == UniC()


def test_other_kinds_of_schedulers():
    """Euler becomes DDIM, and a flow has no corrector."""
    euler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    assert type(IECScheduler.from_config(euler.config, corrector=UniC(), clip_sample=False)) is IECScheduler
    flow = type("Pipe", (), {"scheduler": FlowMatchEulerDiscreteScheduler()})()
    with pytest.raises(ConfigError, match="flow matching. Apply the correction alone"):
        iec.apply(flow, correction=iec.Correction(), corrector=UniC())
