"""The table of pipelines is true: each is built, tiny and with the kind of scheduler that it is published with."""

from contextlib import contextmanager, nullcontext
from pathlib import Path

import diffusers
import pytest
import torch

import iec
from iec.errors import ConfigError
from iec.pipelines import apply as apply_module
from iec.pipelines.support import FLOW, PIPELINES, table
from tests.tiny_flow import OTHERS, SDXL_POOLED, WAYS, sdxl
from tests.tiny_pipelines import KINDS, TEXT, refiner, seeded, stable_diffusion

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "PNDMScheduler": {**BETAS, "skip_prk_steps": True, "steps_offset": 1},
    "DDIMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {**BETAS, "timestep_spacing": "leading", "steps_offset": 1},
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "CogVideoXDDIMScheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
IMAGE = {"image": torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)}
BUILT = {
    "StableDiffusionPipeline": (lambda scheduler: exchanged(stable_diffusion(), scheduler), TEXT),
    "DiTPipeline": (lambda scheduler: exchanged(KINDS["DiT"][0](), scheduler), KINDS["DiT"][1]),
    "StableDiffusionXLPipeline": (sdxl, {**TEXT, **SDXL_POOLED, "height": 8, "width": 8}),
    "StableDiffusionXLImg2ImgPipeline": (
        lambda scheduler: exchanged(refiner(), scheduler), {**TEXT, **SDXL_POOLED, **IMAGE, "strength": 1.0},
    ),
    "StableDiffusion3Pipeline": WAYS["SD3"],
    "FluxPipeline": WAYS["FLUX"],
    "SanaPipeline": WAYS["Sana"],
    "WanPipeline": WAYS["Wan"],
    "QwenImagePipeline": WAYS["Qwen-Image"],
    "Lumina2Pipeline": WAYS["Lumina2"],
    "AuraFlowPipeline": WAYS["AuraFlow"],
    "HunyuanVideoPipeline": WAYS["HunyuanVideo"],
    "PixArtSigmaPipeline": OTHERS["PixArt"],
    "CogVideoXPipeline": OTHERS["CogVideoX"],
}  # fmt: skip
REFUSALS = {"SanaPipeline": "multistep", "WanPipeline": "multistep", "PixArtSigmaPipeline": "not A x"}


def exchanged(pipe, scheduler):
    pipe.scheduler = scheduler
    return pipe


class Reached(Exception):
    """Nothing is refused before the network is wrapped, or calibrated."""


@contextmanager
def reached(kind):
    def stop(*_, **__):
        raise Reached

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apply_module, "_cut" if kind == "cache" else "_record", stop)
        yield


def published(row):
    """The scheduler of a row. Sana's and Wan's are for flows."""
    options = UNIPC if row.pipeline in ("SanaPipeline", "WanPipeline") else SCHEDULERS.get(row.scheduler, BETAS)
    return getattr(diffusers, row.scheduler)(**options)


@pytest.mark.parametrize("row", PIPELINES, ids=lambda row: row.pipeline)
def test_the_table_says_what_apply_does(row):
    torch.manual_seed(0)
    make, arguments = BUILT[row.pipeline]
    pipe = make(published(row))
    assert type(pipe).__name__ == row.pipeline
    if row.ours is None:
        before = pipe.scheduler
        with pytest.raises(ConfigError, match=REFUSALS[row.pipeline]):
            iec.apply(pipe, correction=iec.Correction(tolerance=0))
        assert pipe.scheduler is before
        code = row.note.split("`")[1].removeprefix("pipe.scheduler = ")  # what to do instead
        with pytest.warns(UserWarning) if "from_config" in code else nullcontext():
            pipe.scheduler = eval(code, {"iec": iec, "pipe": pipe})
    kinds = {"cache": {"cache": iec.CachingConfig(2)}, "quantize": {"quantize": iec.PTQConfig(), "calibration": {}}}
    for kind, options in kinds.items():
        with pytest.raises(Reached) if getattr(row, kind) else pytest.raises(ConfigError, match="needs one"), reached(kind):
            iec.apply(pipe, **options)
    with iec.apply(pipe, **({} if row.ours is None else {"correction": iec.Correction(tolerance=0)})) as applied:
        pipe(
            **{
                "num_inference_steps": 4,
                "generator": seeded(),
                **arguments,
                "output_type": "latent" if hasattr(pipe, "vae") else "pt",
            }
        )
    run = applied.scheduler.run
    flow = type(applied.scheduler).__name__ == FLOW
    assert row.ours in (None, type(applied.scheduler).__name__) and run.listed == row.lists
    assert len(run.timesteps) == 4 and len(run.calls) == (7 if flow else 8)


def test_the_page_shows_the_table():
    page = (Path(__file__).parents[2] / "docs/pipelines.md").read_text()
    assert table() in page, f"docs/pipelines.md needs this table:\n{table()}"
