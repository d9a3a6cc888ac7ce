"""The quantized copy of a UNet: what is switched on it is refused by name, and what was done to it goes over to the UNet."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from torch import nn

from iec.errors import ConfigError
from iec.pipelines.apply import apply, remove
from tests.pipelines.test_wrappers import image, quantization
from tests.tiny_pipelines import TEXT, seeded, stable_diffusion


@pytest.fixture
def sd():
    torch.manual_seed(0)
    return stable_diffusion()


def half(pipe):
    words = {key: value.half() if torch.is_tensor(value) else value for key, value in TEXT.items()}
    return pipe(**words, num_inference_steps=2, output_type="pt", generator=seeded()).images


def test_a_pipeline_moved_to_half_precision_is_usable_inside_and_after(sd):
    plain = image(sd)
    with apply(sd, **quantization()) as applied:
        scales = {name: q.delta.clone() for name, q in applied.quantized.quantizers().items()}
        sd.to(torch.float16)
        assert torch.isfinite(half(sd)).all()
        assert all(torch.equal(q.delta, scales[name]) for name, q in applied.quantized.quantizers().items())  # float32 still
        assert all(layer.weight_delta.dtype == torch.float32 for layer in applied.quantized.layers().values())
    assert {p.dtype for p in sd.unet.parameters()} == {torch.float16}
    assert torch.isfinite(half(sd)).all()
    sd.to(torch.float32)
    assert (image(sd) - plain).abs().max() < 0.05 * plain.abs().max()


def test_there_and_back_again_costs_no_precision(sd):
    plain = image(sd)
    with apply(sd, **quantization()):
        sd.to(torch.float16)
        sd.to(torch.float32)
    assert torch.equal(image(sd), plain)


def test_layout_gradients_training_and_checkpointing_go_over(sd):
    with apply(sd, **quantization()):
        sd.unet.to(memory_format=torch.channels_last)
        sd.unet.conv_in.requires_grad_(True)
        sd.unet.enable_gradient_checkpointing()
        sd.unet.train()
        image(sd)
    weight = sd.unet.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert sd.unet.conv_in.weight.requires_grad and sd.unet.training and sd.unet.mid_block.resnets[0].training
    assert sd.unet.is_gradient_checkpointing


def chunk(pipe, size):
    for module in pipe.unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.set_chunk_feed_forward(size, dim=0)


SWITCHES = {
    "FreeU": (lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4), lambda pipe: pipe.disable_freeu()),
    "chunked feed-forward": (lambda pipe: chunk(pipe, 2), lambda pipe: chunk(pipe, None)),
    "an attribute": (
        lambda pipe: setattr(pipe.unet.mid_block.resnets[0], "output_scale_factor", 2.0),
        lambda pipe: setattr(pipe.unet.mid_block.resnets[0], "output_scale_factor", 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_refused_while_quantized_and_kept_afterwards(sd, name):
    on, off = SWITCHES[name]
    applied = apply(sd, **quantization())
    quantized = image(sd)
    on(sd)
    with pytest.raises(ConfigError, match="calibrated with another value"):
        image(sd)
    off(sd)
    assert torch.equal(image(sd), quantized)
    on(sd)
    applied.remove()
    kept = image(sd)
    torch.manual_seed(0)
    other = stable_diffusion()
    on(other)
    assert torch.equal(kept, image(other))
    with apply(sd, **quantization()):  # the other way out
        image(sd)


PROCESSORS = {
    "slicing": lambda pipe: pipe.enable_attention_slicing("max"),
    "slicing off": lambda pipe: pipe.disable_attention_slicing(),
    "one attention": lambda pipe: pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(AttnProcessor()),
    "all": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
}


@pytest.mark.parametrize("road", PROCESSORS)
def test_other_attention_processors_are_refused_while_quantized(sd, road):
    with apply(sd, **quantization()) as applied:
        number = len(applied.quantized.quantizers())
        PROCESSORS[road](sd)
        with pytest.raises(ConfigError, match="whose products are not quantized"):
            image(sd)
    remove(sd)
    sd.unet.set_default_attn_processor()
    with apply(sd, **quantization()) as applied:
        assert len(applied.quantized.quantizers()) == number
        image(sd)


def test_attention_slicing_is_kept_afterwards(sd):
    with apply(sd, **quantization()):
        sd.enable_attention_slicing("max")
    assert {type(p) for p in sd.unet.attn_processors.values()} == {SlicedAttnProcessor}
    image(sd)


def test_projections_are_fused_before_or_after_but_not_while_quantized(sd):
    with apply(sd, **quantization()):
        quantized = image(sd)
        with pytest.raises(ConfigError, match="is quantized and its weight"):
            sd.unet.fuse_qkv_projections()
        assert torch.equal(image(sd), quantized) and not hasattr(sd.unet.conv_in, "weight")
    sd.unet.fuse_qkv_projections()
    image(sd)


def test_a_layer_put_in_meanwhile_is_refused(sd):
    with apply(sd, **quantization()):
        ours, sd.unet.conv_in = sd.unet.conv_in, nn.Conv2d(4, 16, 3, padding=1)
        with pytest.raises(ConfigError, match="conv_in .* has been replaced"):
            image(sd)
        sd.unet.conv_in = ours
        sd.unet.conv_in.adapter = nn.Identity()
        with pytest.raises(ConfigError, match="conv_in.adapter .* added"):
            image(sd)
        del sd.unet.conv_in.adapter
        image(sd)


def test_an_adapter_is_fused_first(sd):
    """By its shape: a layer with its own layer inside, as PEFT makes them."""

    class Adapted(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.base_layer = layer

        def forward(self, x):
            return self.base_layer(x)

    layer = sd.unet.conv_in
    sd.unet.conv_in = Adapted(layer)
    with pytest.raises(ConfigError, match="conv_in carries an adapter"):
        apply(sd, **quantization())
    sd.unet.conv_in = layer  # what fusing and unloading leaves
    apply(sd, **quantization()).remove()
