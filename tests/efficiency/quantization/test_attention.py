import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn

from iec.efficiency.quantization.attention import QuantAttnProcessor, quantized_processor
from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.quantizer import search_scale
from iec.efficiency.quantization.steps import StepContext
from iec.errors import ConfigError
from tests.efficiency.quantization.grid import fake_quantize


def quantized(x, bits):
    return fake_quantize(x, *search_scale(x, bits), bits)


def make(context, config, **settings):
    attention = Attention(32, heads=2, dim_head=16, **settings).eval().requires_grad_(False)
    attention.set_processor(QuantAttnProcessor("attention", config, context))
    return attention


def test_operands_are_quantized_right_before_their_products():
    """Cross attention by the formula, two heads: q and k before the scale, the softmax output with its own bits."""
    context, x, text = StepContext(1), torch.randn(3, 10, 32), torch.randn(3, 4, 12)
    attention = make(context, PTQConfig(activation_bits=5, softmax_bits=3), cross_attention_dim=12)

    q, k, v = (
        quantized(projection(source).view(3, -1, 2, 16).transpose(1, 2), 5)
        for projection, source in [(attention.to_q, x), (attention.to_k, text), (attention.to_v, text)]
    )
    weights = quantized((q @ k.transpose(2, 3) / 4).softmax(-1), 3)
    expected = attention.to_out[0]((weights @ v).transpose(1, 2).reshape(3, 10, 32))

    with context.calibrating(0):
        torch.testing.assert_close(attention(x, text), expected, rtol=1e-4, atol=1e-5)
    with context.reading(0):
        torch.testing.assert_close(attention(x, text), expected, rtol=1e-4, atol=1e-5)
    delta = attention.processor.query.delta[0]
    torch.testing.assert_close(delta, search_scale(attention.to_q(x), 5)[0])


def test_as_diffusers_with_norm_residual_factor_and_images():
    settings = {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 1.5, "bias": True}
    ours = make(StepContext(1), PTQConfig(activation_bits=32, softmax_bits=32), **settings)
    theirs = Attention(32, heads=2, dim_head=16, **settings).eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(2, 32, 4, 6), torch.randn(2, 24, 32)):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_as_diffusers_without_the_scale_and_with_normed_context():
    settings = {"scale_qk": False, "cross_attention_dim": 12, "cross_attention_norm": "layer_norm"}
    ours = make(StepContext(1), PTQConfig(activation_bits=32, softmax_bits=32), **settings)
    theirs = Attention(32, heads=2, dim_head=16, **settings).eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    x, text = torch.randn(2, 24, 32), torch.randn(2, 5, 12) * 3
    torch.testing.assert_close(ours(x, text), theirs(x, text), rtol=1e-5, atol=1e-6)


NOTHING = PTQConfig(activation_bits=32, softmax_bits=32)
JOINT = {"added_kv_proj_dim": 12, "qk_norm": "rms_norm", "bias": True, "out_dim": 32}


def test_operands_of_joint_attention_are_quantized_right_before_their_products():
    """SD3: image and text, each with its projections and norms, attend to both; the text of the last block is not read again."""
    context, config, x, text = (
        StepContext(1),
        PTQConfig(activation_bits=5, softmax_bits=3),
        torch.randn(3, 10, 32),
        torch.randn(3, 4, 12),
    )
    attention = Attention(32, heads=2, dim_head=16, processor=JointAttnProcessor2_0(), context_pre_only=True, **JOINT)
    attention.eval().requires_grad_(False)
    attention.set_processor(quantized_processor(attention, "attention", config, context))

    def operand(image, added, norms=()):
        parts = [layer(of).view(3, -1, 2, 16).transpose(1, 2) for layer, of in ((image, x), (added, text))]
        parts = [norm(part) for norm, part in zip(norms, parts, strict=True)] if norms else parts
        return quantized(torch.cat(parts, dim=2), 5)

    q = operand(attention.to_q, attention.add_q_proj, (attention.norm_q, attention.norm_added_q))
    k = operand(attention.to_k, attention.add_k_proj, (attention.norm_k, attention.norm_added_k))
    weights = quantized((q @ k.transpose(2, 3) / 4).softmax(-1), 3)
    both = (weights @ operand(attention.to_v, attention.add_v_proj)).transpose(1, 2).reshape(3, 14, 32)
    expected = attention.to_out[0](both[:, :10]), both[:, 10:]

    for mode in (context.calibrating, context.reading):
        with mode(0):
            torch.testing.assert_close(attention(x, text), expected, rtol=1e-4, atol=1e-5)


def test_joint_attention_without_quantization_is_that_of_diffusers():
    rotary = get_1d_rotary_pos_embed(16, torch.arange(14), use_real=True)
    for attention, more in (
        (Attention(32, heads=2, dim_head=16, processor=JointAttnProcessor2_0(), **JOINT), {}),
        (FluxAttention(32, heads=2, dim_head=16, added_kv_proj_dim=12, bias=True), {"image_rotary_emb": rotary}),
        (FluxAttention(32, heads=2, dim_head=16, pre_only=True), {"attention_mask": torch.rand(3, 1, 10, 10) > 0.2}),
        (FluxAttention(32, heads=2, dim_head=16, pre_only=True), {"attention_mask": torch.randn(3, 1, 10, 10)}),
    ):
        x, text = torch.randn(3, 10, 32), torch.randn(3, 4, 12) if hasattr(attention, "add_q_proj") else None
        expected = attention(x, text, **more)
        attention.set_processor(quantized_processor(attention, "attention", NOTHING, StepContext(1)))
        torch.testing.assert_close(attention(x, text, **more), expected, rtol=1e-5, atol=1e-6)


def test_products_that_are_computed_elsewhere_are_refused():
    class FluxAttnProcessor:  # with an attention backend of diffusers
        def __call__(self, attention, x, *_):
            return attention.to_q(x)

    attention = FluxAttention(32, heads=2, dim_head=16, processor=FluxAttnProcessor())
    attention.set_processor(quantized_processor(attention, "attention", NOTHING, StepContext(1)))
    with pytest.raises(ConfigError, match=r"reset_attention_backend\(\)"):
        attention(torch.randn(3, 10, 32))
    causal = lambda attn, x, *_: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)  # noqa: E731
    attention.processor.inner = causal
    with pytest.raises(ConfigError, match="is causal"):
        attention(torch.randn(3, 10, 32))
