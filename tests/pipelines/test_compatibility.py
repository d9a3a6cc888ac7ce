"""IECScheduler.from_config: which schedulers DDIM replaces, with which values, and which are refused by name."""

import warnings

import diffusers
import numpy as np
import pytest
import torch

from iec.correctors.unic import UniC
from iec.efficiency.caching.config import CachingConfig
from iec.errors import ConfigError
from iec.pipelines.apply import apply
from iec.pipelines.compatibility import DDIM_KEYS
from iec.pipelines.euler import IECEulerScheduler
from iec.pipelines.flow import IECFlowMatchScheduler
from iec.pipelines.scheduler import IECScheduler
from iec.sampling.correction import Correction
from tests.tiny_pipelines import KINDS, LATENT, TEXT, X, pixel_unet, quiet, seeded, stable_diffusion, wave

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def made(name, **options):
    return getattr(diffusers, name)(**options).config


@pytest.fixture
def sd():
    torch.manual_seed(0)
    return stable_diffusion()


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DDIMParallelScheduler"])
def test_the_schedulers_that_networks_are_published_with_take_one_line(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = IECScheduler.from_config(made(name, **SD)).config
    old = made(name, **SD)
    assert all(config[key] == old[key] for key in DDIM_KEYS & old.keys())
    assert config["clip_sample"] is (name != "PNDMScheduler") and config["set_alpha_to_one"] is (name != "PNDMScheduler")


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler"])
def test_values_that_the_old_scheduler_had_by_default_are_kept(name):
    """diffusers drops them, and DDIM's own defaults took their place: other betas (off by 0.1), another spacing."""
    old = getattr(diffusers, name)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        new = IECScheduler.from_config(old.config, clip_sample=False)
    torch.testing.assert_close(new.alphas_cumprod, old.alphas_cumprod, rtol=0, atol=0)
    assert all(new.config[key] == old.config[key] for key in ("timestep_spacing", "steps_offset", "prediction_type"))


def test_a_published_euler_scheduler_is_ddim_in_other_variables():
    """z = x / sqrt(abar): the same run to rounding, if nothing is clipped and the spacing is kept."""
    euler = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    ours = IECScheduler.from_config(euler.config, clip_sample=False, placement="none")
    for scheduler in (euler, ours):
        scheduler.set_timesteps(6)
    z = X * euler.init_noise_sigma
    x = X * euler.init_noise_sigma * ours.alphas_cumprod[euler.timesteps[0].long()] ** 0.5
    for t in euler.timesteps:
        z = euler.step(wave(euler.scale_model_input(z, t), int(t)), t, z).prev_sample
        x = ours.step(wave(x, int(t)), int(t), x).prev_sample
    torch.testing.assert_close(x, z, rtol=1e-5, atol=1e-5)


REFUSED = {
    "FlowMatchEulerDiscreteScheduler": (
        {}, "no beta_schedule.*IECFlowMatchScheduler", {"trained_betas": [0.01] * 1000, "clip_sample": False},
    ),
    "EDMEulerScheduler": ({}, "no beta_schedule", None),
    "ScoreSdeVeScheduler": ({}, "no beta_schedule", None),
    "CogVideoXDDIMScheduler": ({}, "snr_shift_scale=3.0", {"snr_shift_scale": 1.0}),
    "LCMScheduler": ({}, "original_inference_steps=50", {"original_inference_steps": None}),
    "TCDScheduler": ({}, "original_inference_steps=50", {"original_inference_steps": None}),
    "EulerAncestralDiscreteScheduler": ({}, "no clip_sample", {"clip_sample": False}),
    "UniPCMultistepScheduler": (
        {"use_flow_sigmas": True}, "use_flow_sigmas=True", {"use_flow_sigmas": False, "clip_sample": False},
    ),
    "DPMSolverMultistepScheduler": (
        {"use_lu_lambdas": True}, "use_lu_lambdas=True", {"use_lu_lambdas": False, "clip_sample": False},
    ),
    "HeunDiscreteScheduler": ({"use_karras_sigmas": True}, "use_karras_sigmas=True", {"use_karras_sigmas": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_ddim_would_drop_is_refused_and_can_be_said_to_go(name):
    options, message, way_out = REFUSED[name]
    config = made(name, **options)
    with pytest.raises(ConfigError, match=message):
        IECScheduler.from_config(config)
    if way_out is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            ours = IECScheduler.from_config(config, **way_out)
        assert type(ours) is IECScheduler and "original_inference_steps" not in ours.config
        IECScheduler.from_config(ours.config)  # said once


@pytest.mark.parametrize("options", [{}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}])
def test_ddim_of_cogvideox_keeps_its_noise_schedule(options, tmp_path):
    """It shifts abar, rescales it as such, and never clips, whatever clip_sample says."""
    old = diffusers.CogVideoXDDIMScheduler(**options, timestep_spacing="trailing")
    old.save_pretrained(tmp_path)
    new = IECScheduler.from_config(diffusers.CogVideoXDDIMScheduler.from_pretrained(tmp_path).config, placement="none")
    torch.testing.assert_close(new.alphas_cumprod.double(), old.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert new.config["clip_sample"] is False and "snr_shift_scale" not in new.config
    named = IECScheduler.from_config({**old.config, "_class_name": "CogVideoXDDIMScheduler"})
    assert torch.equal(named.alphas_cumprod, new.alphas_cumprod)
    states = []
    for scheduler in (old, new):
        scheduler.set_timesteps(5)
        x = 3 * X
        for t in scheduler.timesteps:
            x = scheduler.step(wave(x, int(t)), int(t), x).prev_sample
        states.append(x.float())
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-3)
    again = IECScheduler.from_config(new.config, placement="all_steps")
    assert torch.equal(again.alphas_cumprod, new.alphas_cumprod)
    again.set_timesteps(5)
    x = X
    for t in again.timesteps:
        x = again.step(wave(x, int(t)), int(t), x).prev_sample
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("key", KARRAS)
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_noise_levels_of_their_own_are_refused(name, key):
    pytest.importorskip("scipy")
    with pytest.raises(ConfigError, match=f"{key}=True"):
        IECScheduler.from_config(made(name, **{key: True}), clip_sample=False)


@pytest.mark.parametrize("kind", ["flow_prediction", "trigflow"])
def test_a_prediction_that_is_not_ddims_is_refused_also_as_a_default(kind):
    config = {**LATENT.config, "prediction_type": kind, "_use_default_values": ["prediction_type"]}
    with pytest.raises(ConfigError, match=kind):
        IECScheduler.from_config(config)


def test_an_incomplete_or_unknown_noise_schedule_is_refused():
    with pytest.raises(ConfigError, match="no beta_start and no beta_end"):
        IECScheduler.from_config({"beta_schedule": "linear", "clip_sample": False})
    with pytest.raises(ConfigError, match="'sigmoid' is not DDIM's"):
        IECScheduler.from_config(made("DDPMScheduler", beta_schedule="sigmoid"))
    betas = torch.linspace(1e-4, 0.02, 1000).tolist()
    ours = IECScheduler.from_config(made("DDPMScheduler", beta_schedule="sigmoid"), trained_betas=betas)
    torch.testing.assert_close(ours.betas, torch.tensor(betas))


SOLVERS = {
    "DPMSolverMultistepScheduler": "DPM-Solver", "UniPCMultistepScheduler": "DPM-Solver", "DEISMultistepScheduler": "DPM-Solver",
    "DPMSolverSinglestepScheduler": "DPM-Solver", "LMSDiscreteScheduler": "LMS", "HeunDiscreteScheduler": "Heun",
    "EulerAncestralDiscreteScheduler": None, "SASolverScheduler": "SASolver",
}  # fmt: skip
"""name -> what is said where it is not known; None: too little is said to tell."""


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_of_another_kind_is_refused_by_name_unless_ddim_is_meant(name):
    built = made(name, **SD)
    for config, who in ((built, SOLVERS[name]), ({**built, "_class_name": name}, name)):
        if who is not None:
            with pytest.raises(ConfigError, match=f"{who}.*not A x"):
                IECScheduler.from_config(config)
            with pytest.warns(UserWarning, match=f"{who}.*become those of DDIM"):
                IECScheduler.from_config(config, clip_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        IECScheduler.from_config(diffusers.DDIMScheduler.from_config(built, clip_sample=False).config)


@pytest.mark.parametrize("inverse", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
def test_an_inversion_is_refused_by_name(sd, inverse):
    old = sd.scheduler = getattr(diffusers, inverse)(**SD)
    with pytest.raises(ConfigError, match=f"{inverse} is an inversion.*from an image to its noise.*clip_sample=False"):
        apply(sd, correction=Correction())
    assert sd.scheduler is old
    with pytest.warns(UserWarning, match=f"{inverse} become those of DDIM"):
        sd.scheduler = IECScheduler.from_config({**old.config, "_class_name": inverse}, clip_sample=False)
    with apply(sd, correction=Correction()):
        assert type(sd.scheduler) is IECScheduler


@pytest.fixture
def stored(tmp_path):
    """The configuration of a stored DDIM scheduler."""
    diffusers.DDIMScheduler(**SD).save_pretrained(tmp_path)
    return diffusers.DDIMScheduler.from_pretrained(tmp_path).config


@pytest.mark.parametrize("name", [*SOLVERS, "DDIMInverseScheduler", "RePaintScheduler", "LCMScheduler", "TCDScheduler"])
def test_a_scheduler_that_was_made_from_that_of_ddim_is_known_by_its_name(sd, stored, name):
    """It has all the keys of DDIM."""
    old = sd.scheduler = getattr(diffusers, name).from_config(stored)
    assert old.config.keys() >= DDIM_KEYS
    with pytest.raises(ConfigError, match=f"^{name} (is|has)"):
        apply(sd, correction=Correction())
    assert sd.scheduler is old


def test_noise_levels_of_euler_are_refused_in_what_was_made_from_ddim(stored):
    named = diffusers.EulerDiscreteScheduler.from_config(stored, use_karras_sigmas=True).config
    with pytest.raises(ConfigError, match="use_karras_sigmas=True"):
        IECScheduler.from_config(named, clip_sample=False)
    assert type(IECScheduler.from_config(named, clip_sample=False, use_karras_sigmas=False)) is IECScheduler


def test_the_name_of_a_loaded_scheduler_counts(tmp_path):
    """DDIM made of a loaded LCM scheduler keeps its keys, and is DDIM all the same."""
    diffusers.LCMScheduler(original_inference_steps=25).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="LCMScheduler has original_inference_steps"):
        IECScheduler.from_pretrained(tmp_path)
    loaded = diffusers.LCMScheduler.from_pretrained(tmp_path)
    IECScheduler.from_config(diffusers.DDIMScheduler.from_config(loaded.config).config)
    built = diffusers.LCMScheduler(original_inference_steps=25)
    IECScheduler.from_config(IECScheduler.from_config(built.config, original_inference_steps=None).config)


def test_apply_keeps_euler_under_a_cache_too(sd):
    sd.scheduler = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    for options in ({}, {"cache": CachingConfig(2)}):
        with apply(sd, correction=Correction(tolerance=0), **options):
            assert type(sd.scheduler) is IECEulerScheduler
    sd.scheduler = IECScheduler.from_config(sd.scheduler.config, iterations=3)
    with apply(sd, cache=CachingConfig(2)):
        assert type(sd.scheduler) is IECEulerScheduler and sd.scheduler.correction.iterations == 3


def test_ddim_on_pixels_asks_whether_x0_is_clipped():
    ddim = KINDS["DDIM"][0]()
    ddim.scheduler = diffusers.EulerDiscreteScheduler()
    with pytest.raises(ConfigError, match="EulerDiscreteScheduler has no clip_sample"):
        apply(ddim, corrector=UniC())
    ddim.scheduler = IECScheduler.from_config(ddim.scheduler.config, clip_sample=True)
    with apply(ddim, cache=CachingConfig(2)):
        ddim(batch_size=1, num_inference_steps=2)


def test_apply_refuses_by_the_class_of_the_scheduler(sd):
    sd.scheduler = diffusers.LCMScheduler.from_config(sd.scheduler.config)
    with pytest.raises(ConfigError, match="LCMScheduler has original_inference_steps"):
        apply(sd, correction=Correction(tolerance=0))
    sd.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(sd.scheduler.config)
    with pytest.raises(ConfigError, match="EulerAncestral.*not A x"):
        apply(sd, correction=Correction(tolerance=0))
    sd.scheduler = IECScheduler.from_config(sd.scheduler.config, clip_sample=False)
    apply(sd, correction=Correction(tolerance=0)).remove()
    built = diffusers.LCMScheduler(**SD, original_inference_steps=25)
    sd.scheduler = diffusers.DDIMScheduler.from_config(built.config)  # keeps the key, and is DDIM all the same
    apply(sd, correction=Correction(tolerance=0)).remove()


STORED = {
    "range": ({"placement": "explicit", "steps": range(1, 3)}, {"steps": [1, 2]}),
    "set": ({"placement": "explicit", "steps": {2, 1}}, {"steps": [1, 2]}),
    "array": ({"placement": "explicit", "steps": np.arange(1, 3)}, {"steps": [1, 2]}),
    "NumPy integers": ({"placement": "explicit", "steps": (np.int64(1), np.int64(2))}, {"steps": [1, 2]}),
    "tensor": ({"iterations": 2, "lambdas": torch.tensor([1.0, 0.5])}, {"lambdas": [1.0, 0.5]}),
    "tuple": ({"iterations": 2, "lambdas": (1.0, 0.5)}, {"lambdas": [1.0, 0.5]}),
    "scalars": (
        {"lambdas": np.float64(0.25), "iterations": np.int64(2), "placement": "first_last", "count": np.int32(1)},
        {"lambdas": 0.25, "iterations": 2, "count": 1},
    ),
    "fraction": ({"placement": "first_last", "fraction": np.float64(0.5)}, {"fraction": 0.5}),
    "betas": ({"trained_betas": torch.full((1000,), 0.5)}, {"trained_betas": [0.5] * 1000}),
}


@pytest.mark.parametrize("case", STORED)
def test_a_scheduler_stores_what_it_was_given(case, tmp_path):
    given, expected = STORED[case]
    ours = IECScheduler(**given)
    ours.save_pretrained(tmp_path)
    loaded = IECScheduler.from_pretrained(tmp_path)
    assert {key: loaded.config[key] for key in expected} == expected
    assert (loaded.correction, loaded.placement) == (ours.correction, ours.placement)


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}


@pytest.mark.parametrize("placement", [{"placement": "none"}, {}, {"placement": "explicit", "steps": [1, 2]}])
def test_noise_prediction_without_signal_is_refused_whatever_is_corrected(placement):
    with pytest.raises(ConfigError, match="NaN"):
        IECScheduler(**ZERO_SNR, **placement).set_timesteps(4)
    IECScheduler(**{**ZERO_SNR, "timestep_spacing": "leading"}, **placement).set_timesteps(4)  # does not go there


@pytest.mark.parametrize("way_out", [{"rescale_betas_zero_snr": False}, {"prediction_type": "v_prediction"}])
def test_the_ways_out_of_no_signal_give_images(way_out):
    pipe = quiet(diffusers.DDIMPipeline(pixel_unet(), LATENT))
    pipe.scheduler = IECScheduler(**{**ZERO_SNR, **way_out}, placement="explicit", steps=[1, 2])
    images = pipe(batch_size=1, num_inference_steps=4, generator=seeded(), output_type="pt").images
    assert torch.isfinite(torch.as_tensor(images)).all()


def test_ordinary_use_is_unchanged(sd):
    sd.scheduler = IECScheduler.from_config(sd.scheduler.config)
    sd(**TEXT, num_inference_steps=2, output_type="latent")


@pytest.mark.parametrize(
    ("ours", "old"),
    [
        (IECScheduler, "DDIMScheduler"),
        (IECScheduler, "PNDMScheduler"),
        (IECEulerScheduler, "EulerDiscreteScheduler"),
        (IECFlowMatchScheduler, "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_keyword_that_the_scheduler_does_not_have_is_refused(ours, old):
    """diffusers drops it without a word, and the run would have the default in its place."""
    with pytest.raises(ConfigError, match=f"{ours.__name__} takes no iteration. .*did you mean iterations"):
        ours.from_config(made(old), iteration=2)
    with pytest.raises(ConfigError, match="takes no weight. .*iterations, lambdas"):
        ours.from_config(made(old), weight=0.3)
    assert ours.from_config(made(old), iterations=2).correction.iterations == 2


def test_a_keyword_that_the_old_scheduler_has_may_be_given():
    assert IECScheduler.from_config(made("PNDMScheduler"), skip_prk_steps=False).correction.iterations == 1


def test_a_solver_that_is_refused_is_called_by_its_name_once():
    config = {**made("UniPCMultistepScheduler"), "_class_name": "UniPCMultistepScheduler"}
    with pytest.raises(ConfigError, match=r"^UniPCMultistepScheduler is a solver of another kind than DDIM\."):
        IECScheduler.from_config(config)
