"""Checkpoints as the original code makes them: names and shapes of the tensors, in the order of its constructors, written down
independently of diffusers and of iec/models/checkpoints.
"""

import math

import torch

SCHEDULE = ("betas", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod")
SCHEDULE += ("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped")
SCHEDULE += ("posterior_mean_coef1", "posterior_mean_coef2")


class Shapes(dict):
    """name -> shape of a tensor."""

    def layer(self, name, *shape):
        self.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def below(self, prefix):
        return Shapes({prefix + name: shape for name, shape in self.items()})


def fill(shapes, seed=0):
    """Random tensors that keep the size of activations."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        is_scale = len(shape) == 1 and name.endswith("weight")
        state[name] = values * 0.8 / math.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.3 * values + is_scale
    return state


# pesser/pytorch_diffusion, and the autoencoders of LDM


def ddpm_block(s, name, i, o, emb=None):
    s.layer(f"{name}.norm1", i)
    s.layer(f"{name}.conv1", o, i, 3, 3)
    if emb:
        s.layer(f"{name}.temb_proj", o, emb)
    s.layer(f"{name}.norm2", o)
    s.layer(f"{name}.conv2", o, o, 3, 3)
    if i != o:
        s.layer(f"{name}.nin_shortcut", o, i, 1, 1)


def ddpm_attention(s, name, c):
    s.layer(f"{name}.norm", c)
    for part in ("q", "k", "v", "proj_out"):
        s.layer(f"{name}.{part}", c, c, 1, 1)


def ddpm_middle(s, c, emb=None):
    ddpm_block(s, "mid.block_1", c, c, emb)
    ddpm_attention(s, "mid.attn_1", c)
    ddpm_block(s, "mid.block_2", c, c, emb)


def ddpm_ends(s, first, last, out):
    s.layer("norm_out", last)
    s.layer("conv_out", out, last, 3, 3)
    return s


def ddpm(channels, blocks, attention):
    """channels: of each level. attention: the levels that have it."""
    s, emb, last = Shapes(), 4 * channels[0], len(channels) - 1
    s.layer("temb.dense.0", emb, channels[0])
    s.layer("temb.dense.1", emb, emb)
    s.layer("conv_in", channels[0], 3, 3, 3)
    skips, c = [channels[0]], channels[0]
    for level, o in enumerate(channels):
        for j in range(blocks):
            ddpm_block(s, f"down.{level}.block.{j}", c, o, emb)
            if level in attention:
                ddpm_attention(s, f"down.{level}.attn.{j}", o)
            c = o
            skips.append(c)
        if level != last:
            s.layer(f"down.{level}.downsample.conv", c, c, 3, 3)
            skips.append(c)
    ddpm_middle(s, c, emb)
    for level in reversed(range(last + 1)):
        for j in range(blocks + 1):
            ddpm_block(s, f"up.{level}.block.{j}", c + skips.pop(), channels[level], emb)
            c = channels[level]
            if level in attention:
                ddpm_attention(s, f"up.{level}.attn.{j}", c)
        if level:
            s.layer(f"up.{level}.upsample.conv", c, c, 3, 3)
    return ddpm_ends(s, channels[0], c, 3)


def autoencoder(channels, blocks, z, codes=None):
    """KL-f8 (codes None: mean and variance) or VQ-f4."""
    encoder, decoder, c, last = Shapes(), Shapes(), channels[0], len(channels) - 1
    encoder.layer("conv_in", c, 3, 3, 3)
    for level, o in enumerate(channels):
        for j in range(blocks):
            ddpm_block(encoder, f"down.{level}.block.{j}", c, o)
            c = o
        if level != last:
            encoder.layer(f"down.{level}.downsample.conv", c, c, 3, 3)
    ddpm_middle(encoder, c)
    both = z if codes else 2 * z
    ddpm_ends(encoder, None, c, both)
    decoder.layer("conv_in", c, z, 3, 3)
    ddpm_middle(decoder, c)
    for level in reversed(range(last + 1)):
        for j in range(blocks + 1):
            ddpm_block(decoder, f"up.{level}.block.{j}", c, channels[level])
            c = channels[level]
        if level:
            decoder.layer(f"up.{level}.upsample.conv", c, c, 3, 3)
    ddpm_ends(decoder, None, c, 3)
    s = Shapes(encoder.below("encoder.") | decoder.below("decoder."))
    if codes:
        s["quantize.embedding.weight"] = (codes, z)
    s.layer("quant_conv", both, both, 1, 1)
    s.layer("post_quant_conv", z, z, 1, 1)
    return s


# LDM's UNetModel


def openai_block(s, name, i, o, emb, scale_shift):
    s.layer(f"{name}.in_layers.0", i)
    s.layer(f"{name}.in_layers.2", o, i, 3, 3)
    s.layer(f"{name}.emb_layers.1", o * (1 + scale_shift), emb)
    s.layer(f"{name}.out_layers.0", o)
    s.layer(f"{name}.out_layers.3", o, o, 3, 3)
    if i != o:
        s.layer(f"{name}.skip_connection", o, i, 1, 1)


def openai_attention(s, name, c, context):
    s.layer(f"{name}.norm", c)
    if context is None:
        s.layer(f"{name}.qkv", 3 * c, c, 1)
        s.layer(f"{name}.proj_out", c, c, 1)
        return
    s.layer(f"{name}.proj_in", c, c, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attn, width in (("attn1", c), ("attn2", context)):
        s.update({f"{block}.{attn}.to_{part}.weight": (c, width if part in "kv" else c) for part in "qkv"})
        s.layer(f"{block}.{attn}.to_out.0", c, c)
    s.layer(f"{block}.ff.net.0.proj", 8 * c, c)
    s.layer(f"{block}.ff.net.2", c, 4 * c)
    for norm in ("norm1", "norm2", "norm3"):
        s.layer(f"{block}.{norm}", c)
    s.layer(f"{name}.proj_out", c, c, 1, 1)


def openai(channels, blocks, attention, z, context=None, residual=False):
    """attention: the levels that have it. residual: resampling in residual blocks, and scale-shift norm (church)."""
    s, emb, last, c = Shapes(), 4 * channels[0], len(channels) - 1, channels[0]
    s.layer("time_embed.0", emb, channels[0])
    s.layer("time_embed.2", emb, emb)
    s.layer("input_blocks.0.0", c, z, 3, 3)
    skips, n = [c], 1
    for level, o in enumerate(channels):
        for _ in range(blocks):
            openai_block(s, f"input_blocks.{n}.0", c, o, emb, residual)
            if level in attention:
                openai_attention(s, f"input_blocks.{n}.1", o, context)
            c, n = o, n + 1
            skips.append(c)
        if level != last:
            if residual:
                openai_block(s, f"input_blocks.{n}.0", c, c, emb, residual)
            else:
                s.layer(f"input_blocks.{n}.0.op", c, c, 3, 3)
            skips.append(c)
            n += 1
    openai_block(s, "middle_block.0", c, c, emb, residual)
    openai_attention(s, "middle_block.1", c, context)
    openai_block(s, "middle_block.2", c, c, emb, residual)
    n = 0
    for level in reversed(range(last + 1)):
        for j in range(blocks + 1):
            openai_block(s, f"output_blocks.{n}.0", c + skips.pop(), channels[level], emb, residual)
            c, m = channels[level], 1
            if level in attention:
                openai_attention(s, f"output_blocks.{n}.{m}", c, context)
                m += 1
            if level and j == blocks:
                if residual:
                    openai_block(s, f"output_blocks.{n}.{m}", c, c, emb, residual)
                else:
                    s.layer(f"output_blocks.{n}.{m}.conv", c, c, 3, 3)
            n += 1
    s.layer("out.0", c)
    s.layer("out.2", z, c, 3, 3)
    return s


def clip(width, layers, vocabulary, tokens):
    """CLIPTextModel as transformers named it in 2022."""
    s = Shapes({"embeddings.token_embedding.weight": (vocabulary, width), "embeddings.position_embedding.weight": (tokens, width)})
    for n in range(layers):
        for part in ("k", "v", "q", "out"):
            s.layer(f"encoder.layers.{n}.self_attn.{part}_proj", width, width)
        s.layer(f"encoder.layers.{n}.mlp.fc1", 2 * width, width)
        s.layer(f"encoder.layers.{n}.mlp.fc2", width, 2 * width)
        for norm in ("layer_norm1", "layer_norm2"):
            s.layer(f"encoder.layers.{n}.{norm}", width)
    s.layer("final_layer_norm", width)
    return s.below("text_model.")
