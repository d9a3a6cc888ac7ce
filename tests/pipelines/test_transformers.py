"""Quantized transformers under pipelines, and networks that another package has quantized."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

import iec
from iec.efficiency.integer import integer_tensors, stored_network
from iec.efficiency.quantization import PTQConfig, Reconstruction
from iec.errors import ConfigError
from tests.pipelines.test_integers import exact_sums
from tests.tiny_flow import OTHERS, POOLED, TOKENS, WAYS, WIDTH, sd3, words
from tests.tiny_pipelines import KINDS, TEXT, seeded, stable_diffusion

FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
STEPS = 3
GUIDED = {"class_labels": [3, 7], "guidance_scale": 3.0}
NEAR = {"DiT": 4, "PixArt": 2, "SD3": 2, "SD3.5": 2, "FLUX": 1, "FLUX, two branches": 2, "Sana": 2}
"""Inputs a step: guidance makes two of an image, on a doubled batch or in two calls."""
FLOAT = {
    "SD3": ["pos_embed.proj", "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
            "time_text_embed.text_embedder.linear_1", "time_text_embed.text_embedder.linear_2", "context_embedder",
            "transformer_blocks.0.norm1.linear", "transformer_blocks.0.norm1_context.linear", "transformer_blocks.1.norm1.linear",
            "transformer_blocks.1.norm1_context.linear", "norm_out.linear", "proj_out"],
    "FLUX": ["time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
             "time_text_embed.guidance_embedder.linear_1", "time_text_embed.guidance_embedder.linear_2",
             "time_text_embed.text_embedder.linear_1", "time_text_embed.text_embedder.linear_2", "context_embedder", "x_embedder",
             "transformer_blocks.0.norm1.linear", "transformer_blocks.0.norm1_context.linear",
             "single_transformer_blocks.0.norm.linear", "norm_out.linear", "proj_out"],
    "Sana": ["patch_embed.proj", "time_embed.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_2",
             "time_embed.linear", "caption_projection.linear_1", "caption_projection.linear_2", "proj_out"],
}  # fmt: skip
FLOAT |= {"SD3.5": FLOAT["SD3"], "FLUX, two branches": FLOAT["FLUX"]}


def pipeline(name):
    """A pipeline and the arguments of its run."""
    torch.manual_seed(0)
    if name == "DiT":
        pipe, arguments = KINDS["DiT"][0](), {**GUIDED, "output_type": "pt"}
    elif name == "PixArt":
        make, arguments = OTHERS["PixArt"]
        pipe = make(DPMSolverMultistepScheduler())
        with pytest.warns(UserWarning, match="first order"):
            pipe.scheduler = iec.IECScheduler.from_config(pipe.scheduler.config, clip_sample=False, placement="none")
    elif name == "SD3.5":
        pipe, arguments = sd3(FLOW, dual_attention_layers=(0,), qk_norm="rms_norm"), WAYS["SD3"][1]
    else:
        pipe, arguments = WAYS[name][0](FLOW), WAYS[name][1]
    for module in pipe.transformer.modules():  # their last layers begin near zero
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    return pipe, {**arguments, "num_inference_steps": STEPS}


def made(pipe, arguments):
    images = pipe(**arguments, generator=seeded(), **({"output_type": "pt"} if "output_type" not in arguments else {})).images
    return torch.as_tensor(images)


def quantization(name, arguments, **options):
    config = PTQConfig(**{"calibration_images": NEAR[name], "scale_rule": "max", **options})
    return {"quantize": config, "calibration": {**arguments, "generator": seeded()}}


@pytest.mark.parametrize("name", NEAR)
def test_a_quantized_transformer_is_near_the_float_one_and_comes_off(name):
    pipe, arguments = pipeline(name)
    plain, network = made(pipe, arguments), pipe.transformer
    with iec.apply(pipe, **quantization(name, arguments)) as applied:
        simulated = made(pipe, arguments)
        assert torch.equal(made(pipe, arguments), simulated) and pipe.transformer is not network
        layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        kept = {name: applied.quantized.unet.get_submodule(name) for name in FLOAT.get(name, [])}
        assert list(applied.quantized.layers()) == [name for name in layers if name not in kept]
        assert all(type(part) is type(layers[n]) and torch.equal(part.weight, layers[n].weight) for n, part in kept.items())
        assert all(quantizer.calibrated.all() for quantizer in applied.quantized.quantizers().values())
        assert any(name.endswith(".softmax") for name in applied.quantized.quantizers())
    assert 0 < (simulated - plain).norm() < 0.1 * plain.norm()
    assert pipe.transformer is network and torch.equal(made(pipe, arguments), plain)
    with iec.apply(pipe, correction=iec.Correction(tolerance=0), **quantization(name, arguments)):
        assert not torch.equal(made(pipe, arguments), simulated)


LAYERS = {
    "transformer_blocks.1.ff.net.2": "DiT",
    "transformer_blocks.0.attn.add_q_proj": "SD3",
    "transformer_blocks.0.attn2.to_out.0": "SD3.5",
    "single_transformer_blocks.0.proj_out": "FLUX",
}


@pytest.mark.parametrize("layer", LAYERS)
def test_one_layer_is_fake_quantized_as_by_hand(layer):
    """Weights by output channel, the input by tensor and step, on grids of 2^b values from the smallest to the largest."""
    name, caught = LAYERS[layer], {}
    pipe, arguments = pipeline(name)
    with iec.apply(pipe, **quantization(name, arguments, weight_bits=4)) as applied:
        quantized = applied.quantized.unet.get_submodule(layer)
        hook = quantized.register_forward_hook(lambda _, args, output: caught.update(x=args[0], y=output))
        made(pipe, arguments)
        hook.remove()
        quantizer = applied.quantized.quantizers()[f"{layer}.input"]
    float_layer = pipe.transformer.get_submodule(layer)

    def on_grid(values, low, high, bits):
        delta = (high - low) / (2**bits - 1)
        z = (-low / delta).round()
        return (((values / delta).round() + z).clamp(0, 2**bits - 1) - z) * delta

    weight = float_layer.weight.double()
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    step, x = STEPS - 1, caught["x"].double()
    delta, z = quantizer.delta[step].double(), quantizer.zero_point[step].double()
    inputs = (((x / delta).round() + z).clamp(0, 255) - z) * delta
    expected = nn.functional.linear(inputs, on_grid(weight, low, high, 4), float_layer.bias.double())
    torch.testing.assert_close(caught["y"].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not exact_sums(), reason="this CPU does not sum 8-bit products exactly")
@pytest.mark.parametrize("name", ["DiT", "SD3.5", "FLUX", "Sana"])
def test_integers_are_near_the_simulation(name):
    pipe, arguments = pipeline(name)
    plain = made(pipe, arguments)
    with iec.apply(pipe, **quantization(name, arguments, weight_bits=4)):
        simulated = made(pipe, arguments)
    with iec.apply(pipe, **quantization(name, arguments, weight_bits=4), kernels="int8_unfused") as applied:
        assert not applied.quantized.layers()
        integers = made(pipe, arguments)
    assert (integers - simulated).norm() < (simulated - plain).norm()  # values behind a rounding border differ
    assert torch.equal(made(pipe, arguments), plain)


def test_what_acts_on_a_quantized_transformer_works_or_is_refused_by_name():
    pipe, arguments = pipeline("DiT")
    seen, network = [], pipe.transformer
    with iec.apply(pipe, **quantization("DiT", arguments)):
        expected = made(pipe, arguments)
        with pytest.raises(ConfigError, match="calibrated for the 3 timesteps"):
            made(pipe, {**arguments, "num_inference_steps": 4})
        hook = network.transformer_blocks[0].register_forward_hook(lambda *_: seen.append(1))
        assert torch.equal(made(pipe, arguments), expected) and len(seen) == STEPS
        hook.remove()
        pipe.transformer.compile()
        with pytest.raises(ConfigError, match=r"`for m in pipe.transformer.modules\(\): m._compiled_call_impl = None`"):
            made(pipe, arguments)
        for m in pipe.transformer.modules():
            m._compiled_call_impl = None
        pipe.transformer.transformer_blocks[0].set_chunk_feed_forward(1, 1)
        with pytest.raises(ConfigError, match="_chunk_size of transformer_blocks.0 is now 1"):
            made(pipe, arguments)
        pipe.transformer.transformer_blocks[0].set_chunk_feed_forward(None, 0)
        assert torch.equal(made(pipe, arguments), expected)
        pipe.to(torch.bfloat16)
    assert pipe.transformer is network and network.dtype == torch.bfloat16


def test_runs_of_a_quantized_flow_follow_each_other_after_exceptions_and_in_bfloat16():
    """FLUX is told t / 1000, in its own dtype: the step is known by its place in the run."""
    pipe, arguments = pipeline("FLUX, two branches")
    pipe.to(torch.bfloat16)
    arguments = {k: v.bfloat16() if torch.is_tensor(v) else v for k, v in arguments.items()} | {"num_inference_steps": 4}

    def stop(*_):
        raise KeyboardInterrupt

    with iec.apply(pipe, correction=iec.Correction(tolerance=0), **quantization("FLUX, two branches", arguments)) as applied:
        steps, network = [], pipe.transformer
        hook = network.x_embedder.register_forward_hook(lambda *_: steps.append(applied.quantized.context.step("test")))
        expected = made(pipe, arguments)
        assert steps == [i for i, _ in applied.scheduler.run.calls for _ in range(2)] and len(applied.scheduler.run.calls) == 7
        hook.remove()
        with pytest.raises(KeyboardInterrupt):
            made(pipe, {**arguments, "callback_on_step_end": stop})
        assert torch.equal(made(pipe, arguments), expected)
        with pytest.raises(ConfigError, match="did not lay out this call"):
            network(hidden_states=torch.zeros(1, 4, 4), timestep=torch.ones(1))
        with pytest.raises(ConfigError, match="calibrated for the 4 timesteps"):
            made(pipe, {**arguments, "num_inference_steps": 3})


def test_skip_layer_guidance_runs_on_the_scales_of_a_calibration_without():
    pipe, arguments = pipeline("SD3")
    skipping = {**arguments, "skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0}
    with pytest.raises(ConfigError, match="0 as skip_layers"):
        iec.apply(pipe, **quantization("SD3", skipping))
    plain = made(pipe, skipping)
    with iec.apply(pipe, **quantization("SD3", arguments)):
        assert 0 < (made(pipe, skipping) - plain).norm() < 0.1 * plain.norm()


def test_fused_projections_are_refused_until_they_are_taken_apart():
    pipe, arguments = pipeline("FLUX")
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ConfigError, match=r"attention uses FluxAttnProcessor, fused_projections.*unfuse_qkv_projections\(\)"):
        iec.apply(pipe, **quantization("FLUX", arguments))
    pipe.transformer.unfuse_qkv_projections()
    with iec.apply(pipe, **quantization("FLUX", arguments)):
        made(pipe, arguments)


def test_rounding_is_learned_by_layer_where_a_block_gives_image_and_text():
    pipe, arguments = pipeline("SD3.5")
    few = Reconstruction(iterations=2, samples=4, batch_size=2)
    with pytest.raises(ConfigError, match="not of SD3Transformer2DModel: .*image and text side by side.*reconstruct=layer"):
        iec.apply(pipe, **quantization("SD3.5", arguments, reconstruct="block"))
    with iec.apply(pipe, **quantization("SD3.5", arguments, reconstruct="layer", reconstruction=few)) as applied:
        assert all(layer.rounded_up is not None for layer in applied.quantized.layers().values())
        made(pipe, arguments)


@pytest.mark.skipif(not exact_sums(), reason="this CPU does not sum 8-bit products exactly")
def test_stored_integers_of_a_joint_transformer_make_it_again(tmp_path):
    pipe, arguments = pipeline("SD3.5")
    with iec.apply(pipe, **quantization("SD3.5", arguments, weight_bits=4)) as applied:
        stored = {name: tensor.clone() for name, tensor in integer_tensors(applied.quantized).items()}
    given = quantization("SD3.5", arguments, weight_bits=4)
    again = stored_network(pipe.transformer, given["quantize"], STEPS, stored, tmp_path / "file", "int8_unfused", tmp_path)
    assert not any(name.startswith(("proj_out", "context_embedder")) for name in stored)
    told = {"encoder_hidden_states": words(0, TOKENS, WIDTH), "pooled_projections": words(2, POOLED), "timestep": torch.ones(1)}
    with iec.apply(pipe, **given, kernels="int8_unfused") as applied, torch.no_grad():
        outputs = []
        for network in (applied.quantized, again):
            with network.context.reading(1):
                forward = type(network.unet).forward
                outputs.append(forward(network.unet, hidden_states=torch.ones(1, 16, 8, 8), **told).sample)
    assert torch.equal(*outputs)


def test_transformers_of_another_build_are_refused_by_name():
    pipe = WAYS["AuraFlow"][0](iec.IECFlowMatchScheduler(placement="none"))
    with pytest.raises(ConfigError, match="AuraFlowTransformer2DModel; quantization needs one of"):
        iec.apply(pipe, quantize=PTQConfig(), calibration={})
    with pytest.raises(ConfigError, match="has no UNet; caching needs one"):
        iec.apply(pipe, cache=iec.CachingConfig(2))


def test_layers_quantized_by_another_package_are_left_alone():
    """They are known by the module of their class or of their weight's; corrections and caches work, and ours is refused."""

    class Linear8bitLt(nn.Linear):
        __module__ = "bitsandbytes.nn.modules"

    class Int8Tensor(torch.Tensor):
        __module__ = "torchao.quantization"

    for kind in (Linear8bitLt, Int8Tensor):
        torch.manual_seed(0)
        pipe = stable_diffusion()
        layer = pipe.unet.time_embedding.linear_1
        if kind is Linear8bitLt:
            layer.__class__ = kind
        else:
            layer.weight = nn.Parameter(layer.weight.detach().as_subclass(kind), requires_grad=False)
        arguments = {**TEXT, "num_inference_steps": STEPS, "output_type": "pt", "generator": seeded()}
        with pytest.raises(ConfigError, match=rf"time_embedding.linear_1 of pipe.unet is quantized already \({kind.__name__}"):
            iec.apply(pipe, quantize=PTQConfig(calibration_images=4), calibration=arguments)
        for options in ({"correction": iec.Correction(tolerance=0)}, {"cache": iec.CachingConfig(2)}):
            with iec.apply(pipe, **options):
                pipe(**arguments)
        assert type(layer) is Linear8bitLt or type(layer.weight) is Int8Tensor
