"""What the original networks compute, from the tensors of their checkpoints by the original names. Independent of diffusers."""

import torch
import torch.nn.functional as F


def norm(state, name, x, eps):
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps)


def conv(state, name, x, **options):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=options.pop("padding", weight.shape[-1] // 2), **options)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def embedding(t, width, cos_first):
    half = width // 2
    exponent = torch.arange(half) / (half if cos_first else half - 1)
    angles = t.float()[:, None] * 10000.0**-exponent
    parts = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(parts, 1)


def attend(q, k, v):
    """[..., channels, positions], one head."""
    weights = (q.transpose(-1, -2) @ k / q.shape[-2] ** 0.5).softmax(-1)
    return v @ weights.transpose(-1, -2)


def run_ddpm_block(s, name, x, emb=None):
    h = conv(s, f"{name}.conv1", F.silu(norm(s, f"{name}.norm1", x, 1e-6)))
    if emb is not None:
        h = h + linear(s, f"{name}.temb_proj", F.silu(emb))[:, :, None, None]
    h = conv(s, f"{name}.conv2", F.silu(norm(s, f"{name}.norm2", h, 1e-6)))
    return h + (conv(s, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in s else x)


def run_ddpm_attention(s, name, x):
    h = norm(s, f"{name}.norm", x, 1e-6)
    q, k, v = (conv(s, f"{name}.{part}", h).flatten(2) for part in "qkv")
    return x + conv(s, f"{name}.proj_out", attend(q, k, v).view_as(x))


def run_level(s, name, h, j, emb=None):
    h = run_ddpm_block(s, f"{name}.block.{j}", h, emb)
    return run_ddpm_attention(s, f"{name}.attn.{j}", h) if f"{name}.attn.{j}.norm.weight" in s else h


def run_middle(s, h, emb=None):
    h = run_ddpm_attention(s, "mid.attn_1", run_ddpm_block(s, "mid.block_1", h, emb))
    return run_ddpm_block(s, "mid.block_2", h, emb)


def upsampled(s, name, h):
    return conv(s, name, F.interpolate(h, scale_factor=2.0))


def run_ddpm(s, x, t, levels, blocks):
    emb = linear(s, "temb.dense.0", embedding(t, s["conv_in.weight"].shape[0], cos_first=False))
    emb = linear(s, "temb.dense.1", F.silu(emb))
    hs = [conv(s, "conv_in", x)]
    for level in range(levels):
        for j in range(blocks):
            hs.append(run_level(s, f"down.{level}", hs[-1], j, emb))
        if level < levels - 1:
            hs.append(conv(s, f"down.{level}.downsample.conv", F.pad(hs[-1], (0, 1, 0, 1)), stride=2, padding=0))
    h = run_middle(s, hs[-1], emb)
    for level in reversed(range(levels)):
        for j in range(blocks + 1):
            h = run_level(s, f"up.{level}", torch.cat([h, hs.pop()], 1), j, emb)
        if level:
            h = upsampled(s, f"up.{level}.upsample.conv", h)
    return conv(s, "conv_out", F.silu(norm(s, "norm_out", h, 1e-6)))


def run_decoder(state, z, levels, blocks):
    """first_stage.decode: the nearest code (VQ), post_quant_conv, the decoder."""
    if "quantize.embedding.weight" in state:
        codes = state["quantize.embedding.weight"]
        nearest = torch.cdist(z.movedim(1, -1).flatten(0, 2), codes).argmin(1)
        z = codes[nearest].view(z.movedim(1, -1).shape).movedim(-1, 1)
    z = conv(state, "post_quant_conv", z)
    s = {name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}
    h = run_middle(s, conv(s, "conv_in", z))
    for level in reversed(range(levels)):
        for j in range(blocks + 1):
            h = run_level(s, f"up.{level}", h, j)
        if level:
            h = upsampled(s, f"up.{level}.upsample.conv", h)
    return conv(s, "conv_out", F.silu(norm(s, "norm_out", h, 1e-6)))


def run_openai_block(s, name, x, emb, residual, resample=lambda h: h):
    h = conv(s, f"{name}.in_layers.2", resample(F.silu(norm(s, f"{name}.in_layers.0", x, 1e-5))))
    e = linear(s, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    if residual:
        scale, shift = e.chunk(2, dim=1)
        h = norm(s, f"{name}.out_layers.0", h, 1e-5) * (1 + scale) + shift
    else:
        h = norm(s, f"{name}.out_layers.0", h + e, 1e-5)
    h = conv(s, f"{name}.out_layers.3", F.silu(h))
    x = resample(x)
    return h + (conv(s, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in s else x)


def run_openai_attention(s, name, x, heads):
    """Head by head: the first 3 C / heads channels of qkv are q, k and v of head 0."""
    h = F.group_norm(x.flatten(2), 32, s[f"{name}.norm.weight"], s[f"{name}.norm.bias"], 1e-5)
    qkv = F.conv1d(h, s[f"{name}.qkv.weight"], s[f"{name}.qkv.bias"])
    q, k, v = qkv.view(len(x), heads, 3, -1, qkv.shape[-1]).unbind(2)
    a = attend(q, k, v).flatten(1, 2)
    return x + F.conv1d(a, s[f"{name}.proj_out.weight"], s[f"{name}.proj_out.bias"]).view_as(x)


def run_openai(s, x, t, heads, residual=False):
    """heads(channels) -> number. Blocks are what their tensors say they are. residual: some residual blocks resample (church); an
    output block that has a second one goes up there, and the mirrored input block goes down.
    """
    emb = linear(s, "time_embed.0", embedding(t, s["input_blocks.0.0.weight"].shape[0], cos_first=True))
    emb = linear(s, "time_embed.2", F.silu(emb))

    def run(name, h, resample=lambda h: h):
        if f"{name}.in_layers.0.weight" in s:
            return run_openai_block(s, name, h, emb, residual, resample)
        if f"{name}.qkv.weight" in s:
            return run_openai_attention(s, name, h, heads(h.shape[1]))
        if f"{name}.op.weight" in s:
            return conv(s, f"{name}.op", h, stride=2)
        return upsampled(s, f"{name}.conv", h)

    def count(path):
        return 1 + max(int(name.split(".")[1]) for name in s if name.startswith(path))

    def has(name):
        return any(key.startswith(name + ".") for key in s)

    hs = [conv(s, "input_blocks.0.0", x)]
    inputs, outputs = count("input_blocks"), count("output_blocks")
    ups = [n for n in range(outputs) if residual and has(f"output_blocks.{n}.2")]
    ups += [n for n in range(outputs) if residual and f"output_blocks.{n}.1.in_layers.0.weight" in s]
    downs = {outputs - 1 - n for n in ups}
    for n in range(1, inputs):
        h = run(f"input_blocks.{n}.0", hs[-1], (lambda h: F.avg_pool2d(h, 2)) if n in downs else (lambda h: h))
        hs.append(run(f"input_blocks.{n}.1", h) if has(f"input_blocks.{n}.1") else h)
    h = hs[-1]
    for m in range(3):
        h = run(f"middle_block.{m}", h)
    for n in range(outputs):
        h = run(f"output_blocks.{n}.0", torch.cat([h, hs.pop()], 1))
        for m in (1, 2):
            if has(f"output_blocks.{n}.{m}"):
                h = run(f"output_blocks.{n}.{m}", h, lambda h: F.interpolate(h, scale_factor=2.0))
    return conv(s, "out.2", F.silu(norm(s, "out.0", h, 1e-5)))
