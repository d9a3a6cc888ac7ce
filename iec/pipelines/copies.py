"""The quantized copy of a pipeline's UNet beside the UNet itself: what they share, and what goes from one to the other."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor
from torch import Tensor, nn

from iec.efficiency.integer import IntegerLayer
from iec.efficiency.quantization.layers import QuantLayer
from iec.errors import ConfigError

HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
         "_forward_pre_hooks_with_kwargs")  # fmt: skip
HARMLESS = {"training", "gradient_checkpointing", "_is_torch_compile"}
"""Switches that do not change what is computed without gradients."""
STATELESS = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)
"""Attention processors without weights, which any attention can be given."""
Switch = tuple[str, str]
"""A module's name and the name of its attribute."""


class QuantizedCopy:
    """``copy``, calibrated, in the place of ``original``. It has to stay as it was calibrated.

    Forward hooks belong to both: one put on either, before or after, is called in the copy and can be taken off by its handle.
    A quantized layer hands itself, not its Conv2d or Linear, to its hooks. `hand_back` takes dtype, device, layout, flags and
    switches over to the original; of a layer on integers, which has no weight, dtype and device of the network.
    """

    def __init__(self, original: nn.Module, copy: nn.Module) -> None:
        self.original, self.copy = original, copy
        self.modules = dict(copy.named_modules())
        self.switches, self.processors = _switches(copy), _processors(copy)
        on_integers = any(isinstance(module, IntegerLayer) for module in self.modules.values())
        self.device = next(copy.parameters()).device if on_integers else None
        share_hooks(original, copy)

    def require_unchanged(self) -> None:
        """Raises `ConfigError` for anything switched on since the calibration, by name."""
        modules, processors = dict(self.copy.named_modules()), _processors(self.copy)
        device = next(self.copy.parameters()).device
        if self.device not in (None, device):
            raise ConfigError(
                f"The network computes on integers that lie on {self.device}, and has been moved to {device}. Move it back, or "
                "call iec.remove(pipe), move it, and iec.apply again."
            )
        for name, processor in processors.items():
            if processor is not self.processors.get(name):
                raise ConfigError(
                    f"The processor of {name} is now {type(processor).__name__} (attention slicing, xformers, fused projections, "
                    "IP-Adapter ..), whose products are not quantized. Call iec.remove(pipe), then "
                    "set_default_attn_processor() of the network if it has that, and iec.apply again."
                )
        for name, module in {**self.modules, **modules}.items():
            if modules.get(name) is not self.modules.get(name):
                what = type(module).__name__
                raise ConfigError(
                    f"{name} ({what}) of the quantized network has been replaced, added or taken out since it was calibrated (an "
                    "adapter?). Call iec.remove(pipe), change the network, and iec.apply again."
                )
        for (name, attribute), value in self._switched():
            if attribute not in HARMLESS:
                raise ConfigError(
                    f"{attribute} of {name or 'the network'} is now {value!r} (FreeU, chunked feed-forward ..): the network was "
                    "calibrated with another value. Switch it back (pipe.disable_freeu() ..), or call "
                    "iec.remove(pipe), which keeps the switch, and iec.apply again."
                )

    def hand_back(self) -> None:
        """Give the original what the pipeline did to the copy meanwhile."""
        switched, first = dict(self._switched()), next(self.copy.parameters())
        for name, module in self.original.named_modules():
            copied = self.modules.get(name)
            if copied is None:  # the original's own attention processor, if it is a module
                continue
            inner: Any = copied.layer if isinstance(copied, QuantLayer) else copied
            for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if isinstance(inner, IntegerLayer):
                    value.data = value.data.to(first.device, first.dtype)
                    continue
                model = getattr(inner, key)
                value.data = _like(value.data, model)
                if isinstance(model, nn.Parameter) and model.requires_grad:
                    value.requires_grad_(True)
            for attribute in vars(inner):
                if (name, attribute) in switched:
                    setattr(module, attribute, switched[name, attribute])
            processor = getattr(inner, "processor", None)
            if type(processor) in STATELESS and processor is not self.processors.get(name):
                module.set_processor(processor)

    def _switched(self) -> Iterator[tuple[Switch, Any]]:
        for key, value in _switches(self.copy).items():
            if value != self.switches.get(key):
                yield key, value


def share_hooks(original: nn.Module, copy: nn.Module, *, inner: bool = False) -> None:
    """Make the hooks of one those of the other. inner: without those of the network as a whole, of which the copy then has none."""
    copies = dict(copy.named_modules())
    for name, module in original.named_modules():
        copied = copies.get(name)
        if copied is None:
            continue
        for hooks in HOOKS:
            shared = type(vars(module)[hooks])() if inner and not name else vars(module)[hooks]
            for target in (copied, copied.layer) if isinstance(copied, QuantLayer) else (copied,):
                setattr(target, hooks, shared)


def _switches(network: nn.Module) -> dict[Switch, Any]:
    """Every attribute of a module that is a plain value. None is as good as absent."""
    plain = bool | int | float | str | tuple
    modules = network.named_modules()
    return {(name, key): value for name, module in modules for key, value in vars(module).items()
            if value is None or isinstance(value, plain)}  # fmt: skip


def _processors(network: nn.Module) -> dict[str, object]:
    return {name: module.processor for name, module in network.named_modules() if hasattr(module, "set_processor")}


def _like(value: Tensor, model: Tensor) -> Tensor:
    """``value`` with the dtype, device and layout of ``model``."""
    if (value.dtype, value.device, value.stride()) == (model.dtype, model.device, model.stride()):
        return value
    return torch.empty_strided(model.shape, model.stride(), dtype=model.dtype, device=model.device).copy_(value)
