"""Attention with fake-quantized operands, as processors of diffusers' attention modules."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from iec.efficiency.quantization.config import OFF, PTQConfig
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.errors import ConfigError

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

INNER_PROCESSORS = frozenset({"JointAttnProcessor2_0", "FluxAttnProcessor", "SanaAttnProcessor2_0"})
"""Of SD3, of FLUX, and of Sana's attention to text."""


def require_supported(attention: "Attention", name: str) -> None:
    """Raises `ConfigError` for attention that computes anything but softmax(q k^T scale) v."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    if type(attention.processor) in (AttnProcessor, AttnProcessor2_0):
        extras = ("spatial_norm", "norm_q", "norm_k", "added_kv_proj_dim")
        found = [extra for extra in extras if getattr(attention, extra, None) is not None]
    else:
        found = [type(attention.processor).__name__]
    if attention.fused_projections:
        found.append("fused_projections")
    if found:
        raise ConfigError(
            f"{name} cannot be quantized: its attention uses {', '.join(found)}. Use the network with the default attention of "
            "diffusers and separate projections: its unfuse_qkv_projections(), pipe.unload_ip_adapter(), or load it again."
        )


class QuantProducts(nn.Module):
    """softmax(qq kq^T scale)q vq: each operand of both products quantized right before it, q and k before the scale.

    q, k and v have ``activation_bits``, the softmax output ``softmax_bits``; per tensor and sampling step. The projections are
    quantized layers of their own. Source: AttnBlock (quant/quant_block.py of zysxmu/IEC).
    """

    def __init__(self, name: str, config: PTQConfig, context: StepContext) -> None:
        super().__init__()

        def quantizer(operand: str, bits: int) -> nn.Module:
            if bits == OFF:
                return nn.Identity()
            return ActivationQuantizer(f"{name}.{operand}", bits, config, context)

        self.query = quantizer("query", config.activation_bits)
        self.key = quantizer("key", config.activation_bits)
        self.value = quantizer("value", config.activation_bits)
        self.softmax = quantizer("softmax", config.softmax_bits)


class QuantAttnProcessor(QuantProducts):
    """Does what diffusers' `AttnProcessor2_0` does, with quantized products: group norm, 4-D inputs, self and cross attention,
    mask, residual and output factor.
    """

    # __call__ and not forward: Attention reads the names of its parameters to see which keywords a processor takes.
    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [B, C, H, W] or [B, N, C]; encoder_hidden_states [B, M, D]; mask [B, 1 or N, M], added to the scores."""
        residual, shape = hidden_states, hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # B x N x C
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)

        hidden_states = self._attend(attn, hidden_states, context, attention_mask)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if len(shape) == 4:
            hidden_states = hidden_states.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _attend(self, attn: "Attention", x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """[B, N, C'] from x [B, N, C] and context [B, M, D]; heads are folded into the batch, as [B heads, N, C' / heads]."""
        query = self.query(attn.head_to_batch_dim(attn.to_q(x)))
        key = self.key(attn.head_to_batch_dim(attn.to_k(context)))
        value = attn.head_to_batch_dim(attn.to_v(context))
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, context.shape[1], len(x))  # B heads x 1 or N x M
        scores = torch.baddbmm(
            query.new_zeros(()) if mask is None else mask,
            query,
            key.transpose(1, 2),
            beta=0 if mask is None else 1,
            alpha=attn.scale,
        )
        weights = self.softmax(scores.softmax(-1))
        return attn.batch_to_head_dim(torch.bmm(weights, self.value(value)))


class QuantInnerProcessor(QuantProducts):
    """Does what ``processor`` does, with quantized products: joint attention, whose norms, rotary embedding and order of image and
    text are its own. All that it gives to ``scaled_dot_product_attention`` is computed here, [B, heads, N, C' / heads].
    """

    def __init__(self, name: str, processor: Any, config: PTQConfig, context: StepContext) -> None:
        super().__init__(name, config, context)
        self.name, self.inner = name, processor

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *positional: Any,
        **keywords: Any,
    ) -> Any:
        """Raises `ConfigError` where the products are computed in another way (an attention backend of diffusers)."""
        with _Products(self) as products:
            result = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, *positional, **keywords)
        if products.count != 1:
            raise ConfigError(
                f"The products of {self.name} are computed by an attention backend of diffusers, where they cannot be quantized. "
                "Call iec.remove(pipe), reset_attention_backend() of the network, and iec.apply again."
            )
        return result

    def product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``scaled_dot_product_attention``; raises `ConfigError` for what no network here asks of it."""
        if dropout_p or is_causal or enable_gqa:
            raise ConfigError(f"{self.name} cannot be quantized: its attention has dropout, is causal, or shares heads.")
        scores = self.query(query) @ self.key(key).transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        return self.softmax(scores.softmax(-1)) @ self.value(value)


def quantized_processor(attention: Any, name: str, config: PTQConfig, context: StepContext) -> QuantProducts | None:
    """The processor in the place of that of ``attention``; None for Sana's linear attention, which has no softmax: its projections
    are quantized, its products stay float. Raises `ConfigError` as `require_supported` does.
    """
    kind = type(attention.processor).__name__
    if kind == "SanaLinearAttnProcessor2_0":
        return None
    if kind in INNER_PROCESSORS and not attention.fused_projections:
        return QuantInnerProcessor(name, attention.processor, config, context)
    require_supported(attention, name)
    return QuantAttnProcessor(name, config, context)


class _Products(TorchFunctionMode):
    """Gives the ``scaled_dot_product_attention`` calls inside it to the processor, and counts them."""

    def __init__(self, processor: QuantInnerProcessor) -> None:
        super().__init__()
        self.processor, self.count = processor, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.count += 1
            return self.processor.product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
