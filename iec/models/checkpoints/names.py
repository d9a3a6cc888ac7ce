"""What each parameter is called in the authors' checkpoints: from the names of diffusers and transformers to the original ones.

The way is from a module's own parameters to the file, so that none can be forgotten or filled twice. Sources of the names:
pytorch_diffusion/model.py (pesser/pytorch_diffusion); ldm/modules/diffusionmodules/{openaimodel,model}.py, ldm/modules/ema.py and
ldm/modules/encoders/modules.py (CompVis/latent-diffusion, CompVis/stable-diffusion).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iec.models.cards import Component

AVERAGED = "model_ema."
SCALE_FACTOR = "scale_factor"
ALPHAS = "alphas_cumprod"
SCHEDULE = (
    *("betas", ALPHAS, "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "lvlb_weights", "logvar"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
IGNORED = frozenset((*SCHEDULE, SCALE_FACTOR, POSITIONS, AVERAGED + "decay", AVERAGED + "num_updates"))
TRAINING = "first_stage_model.loss."
"""Below it: the discriminator and the perceptual loss of the autoencoder."""


@dataclass(frozen=True)
class Origin:
    """Where a parameter comes from: the tensor ``name`` of the file.

    ones: trailing dimensions of size 1: the layer is a 1x1 convolution there, linear here. part: q, k, v = 0, 1, 2 of one tensor
    [3 C, ...] that holds them head by head: head 0's q, k, v, then head 1's ... (QKVAttentionLegacy in openaimodel.py).
    """

    name: str
    ones: int = 0
    part: int | None = None
    heads: int = 1

    def shape(self, expected: torch.Size) -> tuple[int, ...]:
        """Of the tensor in the file, for a parameter of shape ``expected``."""
        rows = expected[:1] if self.part is None else (3 * expected[0],)
        return (*rows, *expected[1:], *(1,) * self.ones)

    def extract(self, stored: Tensor, expected: torch.Size) -> Tensor:
        """The parameter."""
        if self.part is not None:
            stored = stored.unflatten(0, (self.heads, 3, -1))[:, self.part]
        return stored.reshape(expected)


def origins(layout: str, component: Component, module: nn.Module, ema: bool) -> dict[str, Origin]:
    """The origin of every parameter of a component's ``module``, in a file of ``layout``. ema: of the averaged weights (UNet)."""
    find = {"ddpm": _ddpm, "ldm": _ldm}[layout]
    named = {name: find(name, component, module) for name in module.state_dict()}
    if not (ema and component.name == "unet"):
        return named
    return {name: Origin(ema_name(o.name), o.ones, o.part, o.heads) for name, o in named.items()}


def ema_name(name: str) -> str:
    """Of the average of a tensor ``model.*``: LitEma leaves out the dots."""
    return AVERAGED + name.removeprefix("model.").replace(".", "")


def is_ignored(layout: str, name: str) -> bool:
    """Whether a tensor of a file is known to be no part of the model that samples."""
    return layout == "ldm" and (name in IGNORED or name.startswith(TRAINING))


def _ddpm(name: str, _: Component, module: Any) -> Origin:
    return _convolutional(name, len(module.config.block_out_channels))


def _ldm(name: str, component: Component, module: Any) -> Origin:
    if component.kind in ("VQModel", "AutoencoderKL"):
        return _below("first_stage_model.", _convolutional(name, len(module.config.block_out_channels)))
    if component.kind == "CLIPTextModel":
        return Origin("cond_stage_model.transformer.text_model." + name.removeprefix("text_model."))
    if component.kind == "Embedding":
        return Origin("cond_stage_model.embedding." + name)
    return _below("model.diffusion_model.", _openai(name, module))


def _below(prefix: str, origin: Origin) -> Origin:
    return Origin(prefix + origin.name, origin.ones, origin.part, origin.heads)


def _convolutional(name: str, levels: int) -> Origin:
    """Pesser's UNet, and the autoencoders of LDM, which derive from it. ``up`` counts levels from the finest one."""
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (r"\bup_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}"),
        (r"\bdown_blocks\.(\d+)", r"down.\1"),
        (r"\bmid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"\bmid_block\.attentions\.0", "mid.attn_1"),
        (r"\bresnets\.(\d+)", r"block.\1"),
        (r"\battentions\.(\d+)", r"attn.\1"),
        (r"\b(down|up)samplers\.0", r"\1sample"),
        (r"\bgroup_norm\b", "norm"),
        (r"\bto_([qkv])\b", r"\1"),
        (r"\bto_out\.0\b", "proj_out"),
        (r"\btime_emb_proj\b", "temb_proj"),
        (r"\bconv_shortcut\b", "nin_shortcut"),
        (r"\bconv_norm_out\b", "norm_out"),
        (r"^time_embedding\.linear_(\d)", lambda m: f"temb.dense.{int(m[1]) - 1}"),
    )
    original = name
    for pattern, replacement in rules:
        original = re.sub(pattern, replacement, original)
    linear = re.search(r"\bto_(q|k|v|out\.0)\.weight$", name)
    return Origin(original, ones=2 if linear else 0)


ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def _openai(name: str, unet: Any) -> Origin:
    """LDM's UNetModel: ``input_blocks``, ``middle_block`` and ``output_blocks`` count residual blocks and resamplings alike."""
    layer, _, leaf = name.rpartition(".")
    if layer in ENDS:
        return Origin(f"{ENDS[layer]}.{leaf}")
    from diffusers import UNet2DModel

    match = BLOCK.fullmatch(name)
    assert match is not None  # the names are those of a module of diffusers
    path, kind, rest = match[1], match[3], match[5]
    home = _position(unet, path, int(match[2] or 0), kind, int(match[4]))
    if kind == "attentions":
        attention = unet.get_submodule(name.removesuffix("." + rest))
        return _below(home, _attention(rest, attention.heads) if isinstance(unet, UNet2DModel) else Origin(rest))
    part, _, leaf = rest.rpartition(".")
    if part == "conv":  # of a resampling that is no residual block
        return Origin(f"{home}{'op' if path == 'down' else 'conv'}.{leaf}")
    return Origin(f"{home}{RESIDUAL[part]}.{leaf}")


def _position(unet: Any, path: str, block: int, kind: str, index: int) -> str:
    layers = unet.config.layers_per_block
    if path == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}."
    if path == "down":
        n = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else index)
        return f"input_blocks.{n}.{int(kind == 'attentions')}."
    n = block * (layers + 1) + (layers if kind == "upsamplers" else index)
    attends = getattr(unet.up_blocks[block], "attentions", None) is not None
    return f"output_blocks.{n}.{ {'resnets': 0, 'attentions': 1, 'upsamplers': 1 + attends}[kind] }."


def _attention(rest: str, heads: int) -> Origin:
    """LDM's AttentionBlock: q, k, v in one 1-D convolution."""
    layer, _, leaf = rest.rpartition(".")
    ones = int(leaf == "weight")
    if layer == "group_norm":
        return Origin(f"norm.{leaf}")
    if layer == "to_out.0":
        return Origin(f"proj_out.{leaf}", ones)
    return Origin(f"qkv.{leaf}", ones, "qkv".index(layer.removeprefix("to_")), heads)
