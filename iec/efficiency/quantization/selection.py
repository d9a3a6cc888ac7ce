"""Which layers of a network are quantized."""

import re

from torch import nn

from iec.efficiency.quantization.config import PTQConfig
from iec.errors import ConfigError

INNER = re.compile(r"(single_)?transformer_blocks\.\d+\.(?!norm)")
"""The attention and feed-forward layers of the blocks, by the names that diffusers gives them."""
INNER_ONLY = frozenset({"SD3Transformer2DModel", "FluxTransformer2DModel", "SanaTransformer2DModel"})
"""Classes of which `INNER` alone is quantized. Float stay the embedders of patches, timestep, guidance and text, the modulations
(AdaLN: the linear layers in the norms of a block), norm_out and proj_out. They are few operations, and all that follows depends on
them. ViDiT-Q keeps the same (arXiv 2406.02540; x_embedder, t_embedder, y_embedder, t_block, which makes the modulations, and
final_layer in t2v/configs/quant/opensora/remain_fp.txt of thu-nics/ViDiT-Q). Of DiT, PixArt and UNets every layer is quantized, the
ends at ``end_bits``, as the paper's code does with UNets."""


def layers_to_quantize(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Of a float network, by name; one layer can have two."""
    inner_only = is_inner_only(network)
    return {
        name: module
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Conv2d | nn.Linear) and (not inner_only or INNER.match(name))
    }


def require_units(network: nn.Module, config: PTQConfig) -> None:
    """Raises `ConfigError` for ``reconstruct="block"`` of `INNER_ONLY`, whose blocks mostly give two tensors, image and text."""
    if config.reconstruct == "block" and is_inner_only(network):
        raise ConfigError(
            f"reconstruct='block' learns from the output of blocks of UNets, DiT and PixArt, and not of {type(network).__name__}: "
            "blocks of SD3 and FLUX give image and text side by side. Use efficiency.reconstruct=layer."
        )


def is_inner_only(network: nn.Module) -> bool:
    """Whether it is one of `INNER_ONLY`. By the names of its classes: nothing is imported."""
    return any(kind.__name__ in INNER_ONLY for kind in type(network).__mro__)
