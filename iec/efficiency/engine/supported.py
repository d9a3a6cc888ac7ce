"""Which networks have a form in a file."""

from typing import Any

from torch import nn

from iec.efficiency.quantization.attention import QuantAttnProcessor, require_supported
from iec.errors import ConfigError


def require_exportable(unet: Any) -> None:
    """Raises `ConfigError` for parts beyond those of the cards' UNets."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    config = unet.config
    wrong = [f"{key}={config[key]!r}" for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim") if config.get(key)]
    if config.get("center_input_sample") or config.get("time_embedding_type", "positional") != "positional":
        wrong.append("a time embedding or an input of another kind")
    if getattr(unet, "time_embed_act", None) is not None or not isinstance(unet.conv_act, nn.SiLU):
        wrong.append("activations other than SiLU")
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            if not isinstance(module.processor, QuantAttnProcessor):
                require_supported(module, name)
            wrong += [name] if module.rescale_output_factor != 1 else []
        resampler = isinstance(module, Upsample2D | Downsample2D) and module.norm is not None
        block = isinstance(module, ResnetBlock2D) and not (
            isinstance(module.nonlinearity, nn.SiLU)
            and not module.skip_time_act
            and module.time_emb_proj is not None
            and module.time_embedding_norm in ("default", "scale_shift")
            and (module.upsample is None or isinstance(module.upsample, Upsample2D))
            and (module.downsample is None or isinstance(module.downsample, Downsample2D))
        )
        transformer = isinstance(module, BasicTransformerBlock) and (
            module.norm_type != "layer_norm" or module.only_cross_attention or type(module.ff.net[0]).__name__ != "GEGLU"
        )
        if resampler or block or transformer:
            wrong.append(name)
    if wrong:
        raise ConfigError(f"This UNet cannot be exported: {', '.join(wrong[:5])}. Export one of the models of the cards.")
