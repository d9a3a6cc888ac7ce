"""Times beside those of the libraries that do the same: diffusers' pipelines, torch-fidelity's features."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iec.gpucheck.inception import random_inception
from iec.gpucheck.models import small_card
from iec.gpucheck.part import Bench, Line
from iec.gpucheck.subject import Subject
from iec.gpucheck.timing import Timed, limited, timed
from iec.io.files import sha256
from iec.metrics.extractors.efficientnet import EffNetLite0
from iec.metrics.extractors.features import without_tf32
from iec.metrics.extractors.inception import TENSORFLOW, Inception, load_network
from iec.models.architecture import build
from iec.models.cards import Card
from iec.models.conditioning import Prompts
from iec.models.model import Model
from iec.models.prompts import prompts_of
from iec.models.text import TextEncoder, load_tokenizer
from iec.runs.batches import sample_batch
from iec.sampling.ddim import Sampler

STEPS, PROMPTS = 5, 4
RESOLUTION, IMAGES = 32, 50


def ddim_lines(bench: Bench) -> Iterator[Line]:
    """Noise to uint8 images; theirs ends with floats."""
    from diffusers import DDIMPipeline, DDIMScheduler

    subject = Subject.of("ddim_cifar", bench)
    card = subject.card
    model = Model(card, subject.unet, {"weights": "random"}, bench.device)
    pipe: Any = DDIMPipeline(subject.unet, DDIMScheduler(**schedule_of(card)))
    pipe.set_progress_bar_config(disable=True)
    ours = sampled(model, subject.indices)
    theirs = timed(lambda: pipe(batch_size=card.batch_size, num_inference_steps=STEPS, output_type="np"), bench.device)
    yield compared(bench, "ours / diffusers' DDIMPipeline", ours, theirs, f"{card.name}, batch {card.batch_size}, {STEPS} steps")


def stable_diffusion_lines(bench: Bench) -> Iterator[Line]:
    """Prompts to images, with guidance, on few pixels."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    subject = Subject(small_card("sd_coco", bench.size), bench.device)
    card, indices = subject.card, tuple(range(1 if bench.toy else PROMPTS))
    encoder = TextEncoder(build(card.components["text_encoder"], device=bench.device), load_tokenizer())
    prompts, decoder = Prompts(encoder, prompts_of(None)), subject.decoder
    assert decoder is not None
    model = Model(card, subject.unet, {"weights": "random"}, bench.device, card.guidance, decoder, prompts)
    pipe: Any = StableDiffusionPipeline(
        unet=subject.unet,
        vae=decoder.module,
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        scheduler=DDIMScheduler(**schedule_of(card), steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {
        "prompt": [prompts.prompts.of(n) for n in indices],
        "num_inference_steps": STEPS,
        "guidance_scale": card.guidance,
        "height": card.resolution,
        "width": card.resolution,
        "output_type": "np",
    }
    ours, theirs = sampled(model, indices), timed(lambda: pipe(**asked), bench.device)
    what = f"batch {len(indices)}, {STEPS} steps, {card.resolution} x {card.resolution} pixels"
    yield compared(bench, "ours / diffusers' StableDiffusionPipeline", ours, theirs, what)


def schedule_of(card: Card) -> dict[str, Any]:
    """The card's noise schedule, for a scheduler of diffusers."""
    own = card.schedule
    ends = {"beta_start": own.beta_start, "beta_end": own.beta_end}
    return {**ends, "beta_schedule": own.kind, "num_train_timesteps": own.num_timesteps}


def sampled(model: Model, indices: tuple[int, ...]) -> Timed:
    sampler = Sampler(Subject(model.card, model.device).table(STEPS))
    return timed(lambda: sample_batch(model, model.network, sampler, 0, indices), model.device)


def feature_lines(bench: Bench) -> Iterator[Line]:
    """Batches of 50 images of 32 x 32, which extractors enlarge; at toy size of 2 for Inception. Both without TF32."""
    pictures = np.random.default_rng(0).integers(0, 256, (IMAGES, RESOLUTION, RESOLUTION, 3), np.uint8)
    small = EffNetLite0(bench.device)
    took = timed(lambda: small(pictures), bench.device)
    yield Line.note(small.label, IMAGES / took.seconds, "features a second", f"batch {IMAGES}{took.gib}")
    path = random_inception(bench.folder)
    own = Inception(bench.device, TENSORFLOW, path, sha256(path))
    theirs: Any = load_network(path).to(bench.device)
    if bench.toy:
        own.batch, pictures = 2, pictures[:2]

    @torch.inference_mode()
    def reference() -> Tensor:
        with without_tf32():
            return theirs(torch.from_numpy(pictures).permute(0, 3, 1, 2).to(bench.device))[0].cpu()

    ours, other = timed(lambda: own(pictures), bench.device), timed(reference, bench.device)
    yield Line.note(own.label, len(pictures) / ours.seconds, "features a second", f"batch {len(pictures)}{ours.gib}")
    yield compared(bench, "our Inception / torch-fidelity's", ours, other, f"batch {len(pictures)}")


def compared(bench: Bench, what: str, ours: Timed, theirs: Timed, remark: str) -> Line:
    """Our time over theirs."""
    remark = f"{remark}; ours {ours.seconds:.3g} s{ours.gib}, theirs {theirs.seconds:.3g} s{theirs.gib}"
    return limited(bench, what, ours.seconds / theirs.seconds, remark)
