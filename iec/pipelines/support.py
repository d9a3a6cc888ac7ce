"""What `iec.apply` does with pipelines that people run, as they are published."""

from dataclasses import dataclass

DDIM, EULER, FLOW = "IECScheduler", "IECEulerScheduler", "IECFlowMatchScheduler"


@dataclass(frozen=True)
class Support:
    """A pipeline of diffusers and the scheduler that it is published with.

    ours: the class that takes the scheduler's place; None: refused. lists: whether the pipeline passes sigmas, so that it counts
    calls as steps. cache, quantize: whether `iec.apply` takes ours, with the scheduler that the note names where this one is
    refused. note: the reason of a refusal and what to do instead, or what to know.
    """

    pipeline: str
    scheduler: str
    ours: str | None
    lists: bool = False
    cache: bool = False
    quantize: bool = False
    note: str = ""


_SOLVER = "multistep solver; with `pipe.scheduler = iec.IECFlowMatchScheduler(shift=3.0)` yes"
PIPELINES = (
    Support("StableDiffusionPipeline", "PNDMScheduler", DDIM, cache=True, quantize=True, note="sampled by DDIM"),
    Support("DiTPipeline", "DDIMScheduler", DDIM, quantize=True),
    Support("StableDiffusionXLPipeline", "EulerDiscreteScheduler", EULER, cache=True, quantize=True),
    Support(
        "StableDiffusionXLImg2ImgPipeline", "EulerDiscreteScheduler", EULER, cache=True, quantize=True,
        note="the refiner too, with `denoising_start`",
    ),
    Support("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", FLOW, quantize=True, note="3 and 3.5"),
    Support("FluxPipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True, quantize=True),
    Support("SanaPipeline", "DPMSolverMultistepScheduler", None, quantize=True, note=_SOLVER),
    Support("WanPipeline", "UniPCMultistepScheduler", None, note=_SOLVER),
    Support("QwenImagePipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True),
    Support("Lumina2Pipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True),
    Support("AuraFlowPipeline", "FlowMatchEulerDiscreteScheduler", FLOW),
    Support("HunyuanVideoPipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True),
    Support(
        "PixArtSigmaPipeline", "DPMSolverMultistepScheduler", None, quantize=True,
        note="multistep solver; as DDIM with `iec.IECScheduler.from_config(pipe.scheduler.config, clip_sample=False)` yes",
    ),
    Support("CogVideoXPipeline", "CogVideoXDDIMScheduler", DDIM),
)  # fmt: skip


def table() -> str:
    """`PIPELINES` in Markdown, as docs/pipelines.md shows it."""
    lines = ["| pipeline | published with | correction | cache | quantization | passes sigmas | |", "|" + 7 * "---|"]
    for row in PIPELINES:
        verdict = "refused" if row.ours is None else f"`{row.ours}`"
        cache, quantize, lists = ("yes" if value else "" for value in (row.cache, row.quantize, row.lists))
        lines.append(f"| {row.pipeline} | {row.scheduler} | {verdict} | {cache} | {quantize} | {lists} | {row.note} |")
    return "\n".join(lines)
