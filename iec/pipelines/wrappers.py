"""Who else has a hand in a network: hooks, replaced forwards, torch.compile, other caches. Named and refused where one of us would
be passed over; what works together is let through."""

from collections.abc import Iterator
from typing import Any

from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from iec.efficiency.integer import fused_parts
from iec.efficiency.quantization.attention import QuantProducts
from iec.errors import ConfigError

UNETS: tuple[type[Any], ...] = (UNet2DConditionModel, UNet2DModel)
TRANSFORMERS: tuple[type[Any], ...] = (
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    FluxTransformer2DModel,
    SanaTransformer2DModel,
)
"""Transformers that can be quantized: the layers are Conv2d and Linear, and it is known what their attention computes."""
QUANTIZERS = frozenset({"torchao", "bitsandbytes", "optimum", "modelopt", "auto_round", "sdnq", "nunchaku"})
"""Packages whose layers or weights are quantized already; so are those of diffusers.quantizers (GGUF)."""


def part_of(pipe: Any) -> str:
    """The name of the pipeline's network: ``unet`` or ``transformer``."""
    return "unet" if hasattr(pipe, "unet") or not hasattr(pipe, "transformer") else "transformer"


def plain_network(pipe: Any, *, quantize: bool, cache: bool) -> Any:
    """The pipeline's network, if all that is done in its forward is its own. Raises `ConfigError` naming who else takes part."""
    part = part_of(pipe)
    unet = getattr(pipe, part, None)
    if hasattr(unet, "_orig_mod"):
        raise ConfigError(
            f"pipe.{part} is wrapped by torch.compile, and what is put in its place cannot be traced. Give the pipeline the "
            f"network itself, pipe.{part} = pipe.{part}._orig_mod; {_compile_advice(quantize)}"
        )
    if cache and (part != "unet" or not isinstance(unet, nn.Module)):
        raise ConfigError(f"{type(pipe).__name__} has no UNet; caching needs one. Apply the correction alone.")
    known: tuple[type[Any], ...] = UNETS if cache else (*UNETS, *TRANSFORMERS)
    if not isinstance(unet, known):
        raise ConfigError(
            f"pipe.{part} is a {type(unet).__name__}; {'caching' if cache else 'quantization'} needs one of "
            f"{', '.join(kind.__name__ for kind in known)}. Give the pipeline that one (without a wrapper such as DataParallel), "
            "or apply the correction alone."
        )
    if quantize:
        _require_float(unet, part)
    for name, module in unet.named_modules():
        if quantize and isinstance(getattr(module, "base_layer", None), nn.Module):
            raise ConfigError(
                f"{name} carries an adapter (LoRA), which quantization cannot see. Call pipe.fuse_lora() and "
                "pipe.unload_lora_weights() first: then the weights hold it."
            )
    if cache:
        _require_own_forward(unet)
    require_called(unet, quantize=quantize, cache=cache)
    if not quantize:  # which runs a copy, that is not compiled
        require_uncompiled(unet, quantize=False)
    for name, module in unet.named_modules():
        if _replaced_forward(module) is not None and (not name or not hasattr(module, "_diffusers_hook")):
            raise ConfigError(
                f"The forward of {name or 'the network'} has been replaced already (by offloading, or by iec.apply on a pipeline "
                "of the same parts). Take that off, and put it back after this."
            )
    return unet


def require_called(unet: Any, *, quantize: bool, cache: bool) -> None:
    """Raises `ConfigError` if a module has a hook or a forward of its own that is passed over when ``unet`` is run by us.

    With a cache the parts of down and up blocks are run, and the blocks themselves are not called. A quantized network computes
    its layers and attention products itself.
    """
    for name, module in unet.named_modules() if quantize else ():
        if name and _replaced_forward(module) is not None:
            raise ConfigError(
                f"The forward of {name} has been replaced already (by layerwise casting, offloading, a cache of diffusers ..), "
                "and a quantized network would not call it. Take that off, or load the network again. To save memory, move the "
                "pipeline to half precision: pipe.to(torch.float16)."
            )
        if isinstance(module, QuantProducts) and _hooked(module):
            raise ConfigError(f"{name} is called without its hooks. Take them off, and put them on {name.rpartition('.')[0]}.")
        for part in fused_parts(module):
            if _hooked(module.get_submodule(part)):
                raise ConfigError(
                    f"{name}.{part} has a forward hook, and on integers the block computes this part without calling it. Take it "
                    f"off, put it on {name}, or use kernels='simulated'."
                )
    for name, block in _blocks(unet) if cache else ():
        if getattr(block, "s1", None):
            raise ConfigError("FreeU is switched on, and caching runs the up blocks without it. Call pipe.disable_freeu().")
        if _hooked(block):
            raise ConfigError(
                f"{name} has a forward hook, and caching runs the parts of this block without calling the block. Take it off, or "
                f"put it on a part ({name}.resnets.0 ..) or on the whole UNet."
            )
        if _replaced_forward(block) is not None or block._compiled_call_impl is not None:
            raise ConfigError(
                f"The forward of {name} has been replaced already (by block-level offloading, torch.compile of the block ..), and "
                "caching runs the parts of this block without calling the block. Take that off, or wrap its parts "
                f"({name}.resnets.0 ..), e.g. by offload_type='leaf_level'."
            )


def _require_own_forward(unet: Any) -> None:
    """A class with another forward than diffusers', of the UNet or a block, is passed over like one that was put on the module."""
    for name, module in [("the UNet", unet), *_blocks(unet)]:
        if not type(module).forward.__module__.startswith("diffusers."):
            raise ConfigError(
                f"{type(module).__name__} ({name}) has a forward of its own, and caching runs the parts of diffusers' UNets. "
                "Use the class of diffusers with these weights, or leave the cache out."
            )


def require_uncompiled(unet: Any, *, quantize: bool) -> None:
    """Raises `ConfigError` if the UNet, or anything within a quantized one, is compiled in place."""
    part = "transformer" if isinstance(unet, TRANSFORMERS) else "unet"
    if any(module._compiled_call_impl is not None for module in (unet.modules() if quantize else [unet])):
        raise ConfigError(
            "The network is compiled in place, and what is put in its place cannot be traced. Undo it by "
            f"`for m in pipe.{part}.modules(): m._compiled_call_impl = None`; {_compile_advice(quantize)}"
        )


def require_repeatable(pipe: Any) -> None:
    """Raises `ConfigError` if a network of the pipeline is told where the step ends, by the next entry of the scheduler's list:
    within a corrected step that is its own. And for modular pipelines, whose blocks count calls in ways that are not known here.
    """
    if any(kind.__name__ == "ModularPipeline" for kind in type(pipe).__mro__):
        raise ConfigError(
            f"{type(pipe).__name__} is a modular pipeline, whose blocks take the calls of the network for steps, and corrections "
            "add calls. Use diffusers' pipeline of this model (DiffusionPipeline.from_pretrained), or leave the correction out."
        )
    told = [part for part, network in pipe.components.items() if getattr(getattr(network, "config", None), "use_meanflow", False)]
    if told or type(pipe).__name__.startswith("AnyFlow"):
        raise ConfigError(
            f"The network of {type(pipe).__name__} is told the end of its step (mean flow), read from the next entry of the "
            "scheduler's list, which corrections repeat: it would be told that the step has no length. Leave the correction out."
        )


def _require_float(network: nn.Module, part: str) -> None:
    """Raises `ConfigError` if layers are quantized by another package, told by the module of their class or of their weight's."""
    for name, module in network.named_modules():
        for kind in (type(module), *(type(parameter) for parameter in module.parameters(recurse=False))):
            root, *rest = kind.__module__.split(".")
            if root in QUANTIZERS or (root == "diffusers" and rest[:1] == ["quantizers"]):
                raise ConfigError(
                    f"{name} of pipe.{part} is quantized already ({kind.__name__} of {kind.__module__}). Leave quantize out, "
                    "corrections and caches work on such layers; or load the network without quantization_config."
                )


def _compile_advice(quantize: bool) -> str:
    if quantize:
        return "simulated quantization runs uncompiled."
    return "after this the repeated blocks can be compiled: pipe.unet.compile_repeated_blocks()."


def _blocks(unet: Any) -> Iterator[tuple[str, Any]]:
    for kind in ("down_blocks", "up_blocks"):
        for i, block in enumerate(getattr(unet, kind)):
            yield f"{kind}.{i}", block


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _replaced_forward(module: nn.Module) -> Any:
    """The forward that was put on this very module, None if there is none but its class's or that of a fused block."""
    own = vars(module).get("forward")
    return None if fused_parts(module) or getattr(own, "__func__", None) is type(module).forward else own
