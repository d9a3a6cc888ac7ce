"""Attention with fake-quantized operands, as a processor of diffusers' `Attention`."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from iec.efficiency.quantization.config import OFF, PTQConfig
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.errors import ConfigError

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


def require_supported(attention: "Attention", name: str) -> None:
    """Raises `ConfigError` for attention that computes anything but softmax(q k^T scale) v."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    extras = ("spatial_norm", "norm_q", "norm_k", "added_kv_proj_dim")
    found = [extra for extra in extras if getattr(attention, extra, None) is not None]
    if type(attention.processor) not in (AttnProcessor, AttnProcessor2_0):
        found.append(type(attention.processor).__name__)
    if attention.fused_projections:
        found.append("fused_projections")
    if found:
        raise ConfigError(
            f"{name} cannot be quantized: its attention uses {', '.join(found)}. Use a UNet with plain "
            "attention: diffusers' AttnProcessor2_0 and separate projections."
        )


class QuantAttnProcessor(nn.Module):
    """softmax(qq kq^T scale)q vq: each operand of both products quantized right before it, q and k before the scale.

    q, k and v have ``activation_bits``, the softmax output ``softmax_bits``; per tensor and sampling step. The projections are
    quantized layers of their own. Otherwise it does what diffusers' `AttnProcessor2_0` does: group norm, 4-D inputs, self and
    cross attention, mask, residual and output factor. Source: AttnBlock (quant/quant_block.py of zysxmu/IEC).
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
