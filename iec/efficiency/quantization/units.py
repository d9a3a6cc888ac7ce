"""The units of a reconstruction, in the order in which the network runs them."""

from collections.abc import Callable

import torch
from torch import nn

from iec.efficiency.quantization.model import QuantizedUNet


def units(quantized: QuantizedUNet, unet: nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of the modules whose output is reconstructed, in the order in which ``run()`` calls them in the float ``unet``.

    ``layer``: every quantized layer. ``block``: the outermost residual, attention and transformer blocks, which end where the
    residual is added (as in BRECQ, arXiv 2102.05426), and every quantized layer outside of them. Each layer is in one unit. A
    module that ``run`` does not call is left out.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    blocks = (ResnetBlock2D, Attention, BasicTransformerBlock)
    layers = quantized.layers()
    names: list[str] = []
    for name, module in unet.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        block = quantized.config.reconstruct == "block" and isinstance(module, blocks)
        if not inside and (name in layers or block):
            names.append(name)
    order: list[str] = []

    def record(name: str) -> Callable[..., None]:
        return lambda *_: None if name in order else order.append(name)

    handles = [unet.get_submodule(name).register_forward_pre_hook(record(name)) for name in names]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return order
