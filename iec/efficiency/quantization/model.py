"""A diffusers UNet or transformer with its convolutions, linear layers and attention products fake-quantized."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from iec.efficiency.quantization.attention import quantized_processor
from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.layers import QuantLayer, SealedLayer
from iec.efficiency.quantization.selection import layers_to_quantize, require_units
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.errors import ConfigError
from iec.models.unet import network_of, parameter_bytes
from iec.sampling.network import Compiler, FeatureCache, Network, Prediction, Step, compiled_form


class QuantizedUNet(nn.Module):
    """A UNet made by `quantize_unet`, and what its quantizers share. Called like the UNet, inside ``context.reading(i)``."""

    def __init__(self, unet: nn.Module, config: PTQConfig, context: StepContext) -> None:
        super().__init__()
        self.unet, self.config, self.context = unet, config, context

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.unet(*args, **kwargs)

    def layers(self) -> dict[str, QuantLayer]:
        """Quantized layers by name, in the order of the UNet's modules."""
        return {module.name: module for module in self.modules() if isinstance(module, QuantLayer)}

    def quantizers(self) -> dict[str, ActivationQuantizer]:
        """Activation quantizers by name: ``<layer>.input``, ``.input[h]``, ``.input[skip]``, ``<attention>.query`` .."""
        return {module.name: module for module in self.modules() if isinstance(module, ActivationQuantizer)}


class QuantizedNetwork:
    """A quantized UNet as a `Network`: a call at sampling step i reads the scales of step i of every activation quantizer.

    network: how the quantized UNet is evaluated; `network_of` it unless a network that runs parts of it is given. Raises
    `ArtifactError` for a step, or a layer at a step, that was not calibrated.
    """

    def __init__(self, quantized: QuantizedUNet, network: Network | None = None) -> None:
        self.quantized = quantized
        self.network = network or network_of(quantized.unet)

    def __call__(self, x: Tensor, step: Step, cond: Any = None, cache: FeatureCache | None = None) -> Prediction:
        with self.quantized.context.reading(step.index):
            return self.network(x, step, cond, cache)

    def compiled(self, compiler: Compiler) -> "CompiledQuantizedNetwork":
        """See `Compilable`. Raises `ConfigError` for integer kernels."""
        if not self.quantized.layers():
            raise ConfigError(
                "Integer kernels are compiled already, and torch.compile does not see into them. Use model.compile=false, or "
                "efficiency.kernels=simulated."
            )
        return CompiledQuantizedNetwork(self.quantized, compiled_form(self.network, compiler))


class CompiledQuantizedNetwork(QuantizedNetwork):
    """On graphs that read the scales of a step by its index, a tensor. A graph cannot refuse a step; this does, before the call."""

    def __init__(self, quantized: QuantizedUNet, network: Network) -> None:
        super().__init__(quantized, network)
        skipped = tuple(f"{name}." for name in getattr(network, "skipped", ()))
        quantizers = quantized.quantizers()
        self._read = {
            "full": list(quantizers.values()),
            "cached": [quantizer for name, quantizer in quantizers.items() if not name.startswith(skipped)],
        }

    def __call__(self, x: Tensor, step: Step, cond: Any = None, cache: FeatureCache | None = None) -> Prediction:
        with self.quantized.context.reading(step.index, x.device):
            for quantizer in self._read[step.mode]:
                quantizer.require(step.index)
            return self.network(x, step, cond, cache)


def quantize_unet(unet: nn.Module, config: PTQConfig, num_steps: int) -> QuantizedUNet:
    """A quantized copy of a UNet2DModel, a UNet2DConditionModel, or a transformer of Conv2d and Linear layers (DiT, PixArt, SD3,
    FLUX, Sana), for ``num_steps`` sampling steps; ``unet`` is left as it is.

    Weights are quantized here, from their values alone; activations need `calibrate` or `load_calibration`. Every Conv2d and
    Linear is quantized, the time embedding's included; of SD3, FLUX and Sana those of `selection.INNER` alone. Embedding tables,
    norms and biases stay float. The float weights stay beside the quantized ones, for calibration. Choose dtype and device before:
    scales are kept in float32. Raises `ConfigError` for a network with layers or attention that are none of these.
    """
    return with_layers(copy.deepcopy(unet), config, num_steps, QuantLayer)


LayerMaker = Callable[[nn.Conv2d | nn.Linear, str, PTQConfig, StepContext, int | None], SealedLayer]
"""From a layer, its name, the config, what all layers share, and where its input is split."""


def with_layers(unet: nn.Module, config: PTQConfig, num_steps: int, make: LayerMaker) -> QuantizedUNet:
    """``unet``, in place, with every layer of `layers_to_quantize` replaced by what ``make`` makes of it, and with quantized
    attention. Raises `ConfigError` as `quantize_unet` does.
    """
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    require_units(unet, config)
    unet = unet.eval().requires_grad_(False)
    context = StepContext(num_steps)
    splits = skip_splits(unet) if config.split_skips and hasattr(unet, "up_blocks") else {}  # a transformer has no skips
    for name, module in list(unet.named_modules()):
        if isinstance(module, Attention | AttentionModuleMixin):
            processor = quantized_processor(module, name, config, context)
            if processor is not None:
                module.set_processor(processor)  # type: ignore[arg-type]  # a stub names one class
        elif isinstance(module, _ConvNd) and not isinstance(module, nn.Conv2d):
            raise ConfigError(f"{name} is a {type(module).__name__}; only Conv2d and Linear layers can be quantized.")
    replaced: dict[nn.Module, SealedLayer] = {}  # one layer can have two names
    for name, layer in layers_to_quantize(unet).items():
        if layer not in replaced:
            replaced[layer] = make(layer, name, config, context, splits.get(name))
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, replaced[layer])
    quantized = QuantizedUNet(unet, config, context)
    device = next(unet.parameters()).device
    for quantizer in quantized.quantizers().values():
        quantizer.to(device)  # its scales are made without knowing of one
    return quantized


def skip_splits(unet: Any) -> dict[str, int]:
    """Where the input of a layer of an up block stops being h and starts being the skip: layer name -> channels of h.

    Every residual block of an up block gets cat([h, skip]), h from the block before it. Its first convolution (after norm and
    SiLU, which keep the order of channels) and its 1x1 shortcut are split. Raises `ConfigError` for up blocks of another build.
    """
    splits: dict[str, int] = {}
    before = unet.mid_block if unet.mid_block is not None else unet.down_blocks[-1]
    channels = before.resnets[-1].conv2.out_channels
    for i, block in enumerate(unet.up_blocks):
        for j, resnet in enumerate(block.resnets):
            name = f"up_blocks.{i}.resnets.{j}"
            if not 0 < channels < resnet.conv1.in_channels:
                raise ConfigError(
                    f"{name} takes {resnet.conv1.in_channels} channels and the block before it gives {channels}: no skip is "
                    "concatenated there. Use efficiency.split_skips=false for this UNet."
                )
            for layer in ("conv1", "conv_shortcut"):
                if getattr(resnet, layer) is not None:
                    splits[f"{name}.{layer}"] = channels
            channels = resnet.conv2.out_channels
    return splits


def weight_bytes(quantized: QuantizedUNet) -> int:
    """Bytes that all weights of the network need: quantized ones at their bits with a float32 delta and an int32 z per channel
    and part (on integers: in 4 bits, or in 8 bits), everything else (biases, norms, embeddings) as it is stored. Activation scales
    are not counted.
    """
    layers = [module for module in quantized.modules() if isinstance(module, SealedLayer)]
    own = sum(parameter_bytes(layer) for layer in layers)
    return parameter_bytes(quantized) - own + sum(layer.stored_bytes for layer in layers)


def describe(quantized: QuantizedUNet) -> str:
    """One line: bits, layers, split layers, calibrated steps, size."""
    config, layers, quantizers = quantized.config, quantized.layers().values(), quantized.quantizers().values()
    steps = quantized.context.num_steps
    complete = sum(all(quantizer.calibrated[i] for quantizer in quantizers) for i in range(steps))
    learned = "" if config.reconstruct == "none" else f", rounding learned by {config.reconstruct}"
    full = parameter_bytes(quantized)
    return (
        f"W{config.weight_bits}A{config.activation_bits} (softmax {config.softmax_bits}, ends {config.end_bits} bits, "
        f"{config.scale_rule}{learned}): {len(layers)} layers, {sum(layer.split is not None for layer in layers)} split; "
        f"{complete} of {steps} steps fully calibrated; weights {weight_bytes(quantized) / 1e6:.2f} MB of {full / 1e6:.2f} MB"
    )
