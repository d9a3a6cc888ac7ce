"""What `iec.apply(pipe, correction=..)` does with pipelines that people run, as they are published."""

from dataclasses import dataclass

DDIM, EULER, FLOW = "IECScheduler", "IECEulerScheduler", "IECFlowMatchScheduler"


@dataclass(frozen=True)
class Support:
    """A pipeline of diffusers and the scheduler that it is published with.

    ours: the class that takes the scheduler's place; None: refused. lists: whether the pipeline passes sigmas, so that it counts
    calls as steps. note: the reason of a refusal and what to do instead, or what to know.
    """

    pipeline: str
    scheduler: str
    ours: str | None
    lists: bool = False
    note: str = ""


_SOLVER = "multistep solver; with `pipe.scheduler = iec.IECFlowMatchScheduler(shift=3.0)` yes"
PIPELINES = (
    Support("StableDiffusionPipeline", "PNDMScheduler", DDIM, note="sampled by DDIM"),
    Support("DiTPipeline", "DDIMScheduler", DDIM),
    Support("StableDiffusionXLPipeline", "EulerDiscreteScheduler", EULER),
    Support("StableDiffusionXLImg2ImgPipeline", "EulerDiscreteScheduler", EULER, note="the refiner too, with `denoising_start`"),
    Support("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", FLOW),
    Support("FluxPipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True),
    Support("SanaPipeline", "DPMSolverMultistepScheduler", None, note=_SOLVER),
    Support("WanPipeline", "UniPCMultistepScheduler", None, note=_SOLVER),
    Support("QwenImagePipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True),
    Support("Lumina2Pipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True),
    Support("AuraFlowPipeline", "FlowMatchEulerDiscreteScheduler", FLOW),
    Support("HunyuanVideoPipeline", "FlowMatchEulerDiscreteScheduler", FLOW, lists=True),
    Support(
        "PixArtSigmaPipeline", "DPMSolverMultistepScheduler", None,
        note="multistep solver; as DDIM with `iec.IECScheduler.from_config(pipe.scheduler.config, clip_sample=False)` yes",
    ),
    Support("CogVideoXPipeline", "CogVideoXDDIMScheduler", DDIM),
)  # fmt: skip


def table() -> str:
    """`PIPELINES` in Markdown, as docs/pipelines.md shows it."""
    lines = ["| pipeline | published with | correction | passes sigmas | |", "|---|---|---|---|---|"]
    for row in PIPELINES:
        verdict = "refused" if row.ours is None else f"`{row.ours}`"
        lines.append(f"| {row.pipeline} | {row.scheduler} | {verdict} | {'yes' if row.lists else ''} | {row.note} |")
    return "\n".join(lines)
