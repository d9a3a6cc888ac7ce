import torch
from diffusers.models.attention_processor import Attention

from iec.efficiency.quantization.attention import QuantAttnProcessor
from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.quantizer import search_scale
from iec.efficiency.quantization.steps import StepContext
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
