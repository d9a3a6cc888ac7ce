"""Quantized transformers under pipelines, and networks that another package has quantized."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn

import iec
from iec.efficiency.quantization import PTQConfig
from iec.errors import ConfigError
from tests.pipelines.test_integers import exact_sums
from tests.tiny_flow import OTHERS, WAYS
from tests.tiny_pipelines import KINDS, TEXT, seeded, stable_diffusion

STEPS = 3
GUIDED = {"class_labels": [3, 7], "guidance_scale": 3.0}
NEAR = {"DiT": 4, "PixArt": 2}
"""Inputs a step: guidance makes two of an image."""


def pipeline(name):
    """A pipeline and the arguments of its run."""
    torch.manual_seed(0)
    if name == "DiT":
        pipe, arguments = KINDS["DiT"][0](), {**GUIDED, "output_type": "pt"}
    else:
        make, arguments = OTHERS["PixArt"]
        pipe = make(DPMSolverMultistepScheduler())
        with pytest.warns(UserWarning, match="first order"):
            pipe.scheduler = iec.IECScheduler.from_config(pipe.scheduler.config, clip_sample=False, placement="none")
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
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        assert list(applied.quantized.layers()) == layers
        assert all(quantizer.calibrated.all() for quantizer in applied.quantized.quantizers().values())
        assert any(name.endswith(".softmax") for name in applied.quantized.quantizers())
    assert 0 < (simulated - plain).norm() < 0.1 * plain.norm()
    assert pipe.transformer is network and torch.equal(made(pipe, arguments), plain)
    with iec.apply(pipe, correction=iec.Correction(tolerance=0), **quantization(name, arguments)):
        assert not torch.equal(made(pipe, arguments), simulated)


def test_one_layer_is_fake_quantized_as_by_hand():
    """Weights by output channel, the input by tensor and step, on grids of 2^b values from the smallest to the largest."""
    pipe, arguments = pipeline("DiT")
    layer, caught = "transformer_blocks.1.ff.net.2", {}
    with iec.apply(pipe, **quantization("DiT", arguments, weight_bits=4)) as applied:
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
def test_integers_are_near_the_simulation():
    pipe, arguments = pipeline("DiT")
    plain = made(pipe, arguments)
    with iec.apply(pipe, **quantization("DiT", arguments)):
        simulated = made(pipe, arguments)
    with iec.apply(pipe, **quantization("DiT", arguments), kernels="int8_unfused") as applied:
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


def test_transformers_of_another_build_are_refused_by_name():
    pipe = WAYS["SD3"][0](iec.IECFlowMatchScheduler(placement="none"))
    with pytest.raises(ConfigError, match="SD3Transformer2DModel; quantization needs one of"):
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
