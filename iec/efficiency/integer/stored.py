"""The integers of a quantized network as tensors, and the network from them: no float weight is held on the way."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.passes import Passes
from iec.efficiency.integer.products import Product
from iec.efficiency.integer.weights import pack, packed_shape, unpack
from iec.efficiency.quantization import PTQConfig, QuantizedUNet
from iec.efficiency.quantization.artifact import calibration_tensors, fill_calibration
from iec.efficiency.quantization.layers import SealedLayer, input_quantizers, parts_of
from iec.efficiency.quantization.model import with_layers
from iec.efficiency.quantization.selection import layers_to_quantize
from iec.efficiency.quantization.steps import StepContext
from iec.errors import ArtifactError
from iec.io.artifacts import WAY_OUT

Tensors = dict[str, Tensor]
KIND = "integers"


def integer_tensors(quantized: QuantizedUNet) -> Tensors:
    """Of a calibrated one, by LAYER.KEY: ``weight``, uint8, q = 0 .. 2^bits - 1, two of them a byte up to 4 bits (`pack`);
    ``weight_delta``, float32, and ``weight_zero_point`` z, int32, both [parts, O], so that W = (q - z) delta; CacheQuant's
    ``alpha`` and ``beta`` [T, O]; and the scales of the activations. Biases, norms and embeddings stay with the float network.
    """
    tensors = {}
    for name, layer in quantized.layers().items():
        low = layer.weight_grid()[1]
        tensors[f"{name}.weight"] = pack(layer.weight_codes() - low, layer.weight_bits)
        tensors[f"{name}.weight_delta"] = layer.weight_delta
        tensors[f"{name}.weight_zero_point"] = layer.weight_zero_point.round().to(torch.int32)
        if layer.alpha is not None and layer.beta is not None:
            tensors |= {f"{name}.alpha": layer.alpha, f"{name}.beta": layer.beta}
    scales = calibration_tensors(quantized)
    return tensors | {name: scales[name] for name in scales if name.rpartition(".")[0] in quantized.quantizers()}


class StoredLayer:
    """What `integer_tensors` keeps of the layer ``name``, see `Calibrated`. ``layer`` needs no data in its weight."""

    def __init__(
        self,
        stored: Tensors,
        path: Path,
        layer: nn.Conv2d | nn.Linear,
        name: str,
        config: PTQConfig,
        context: StepContext,
        split: int | None,
    ) -> None:
        """Raises `ArtifactError` for tensors that are missing, or of another layer."""
        self.layer, self.name, self.context, self.split = layer, name, context, split
        self.weight_bits, self.parts = config.bits_of(name)[0], parts_of(layer, split)
        self.inputs = input_quantizers(layer, name, config, context, self.parts)
        shape, scales = layer.weight.shape, [len(self.parts), layer.weight.shape[0]]

        def required(key: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            tensor = stored.get(f"{name}.{key}")
            if tensor is None or list(tensor.shape) != list(shape) or tensor.dtype != dtype:
                there = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                raise ArtifactError(
                    f"{path} does not fit this network: {name}.{key} is {there}, not {dtype} {list(shape)}. {WAY_OUT}"
                )
            return tensor

        self.q = unpack(required("weight", packed_shape(shape, self.weight_bits), torch.uint8), shape, self.weight_bits)
        self.weight_delta = required("weight_delta", scales, torch.float32)
        self.zero_point = required("weight_zero_point", scales, torch.int32)
        self.alpha, self.beta = stored.get(f"{name}.alpha"), stored.get(f"{name}.beta")

    def weight_codes(self) -> Tensor:
        """k [O, I, ..]: the weight is k delta."""
        k = self.q.to(torch.int32)
        for part, z in zip(self.parts, self.zero_point, strict=True):
            k[:, part] -= z.view(-1, *[1] * (k.ndim - 1))
        return k


def integer_unet(
    unet: nn.Module, config: PTQConfig, num_steps: int, stored: Tensors, path: Path, product: type[Product], passes: Passes
) -> QuantizedUNet:
    """The network of which ``stored``, from the file ``path``, are the `integer_tensors`. unet: the float one; the weights of its
    layers are neither read nor copied. Raises `ArtifactError` for tensors of another network.
    """
    device = next(unet.parameters()).device
    stored = {name: tensor.to(device) for name, tensor in stored.items()}
    layers = layers_to_quantize(unet).values()
    empty = {id(layer.weight): nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False) for layer in layers}

    def make(layer: nn.Conv2d | nn.Linear, *rest: Any) -> SealedLayer:
        return IntegerLayer(StoredLayer(stored, path, layer, *rest), product, passes)

    with torch.no_grad():
        integer = with_layers(copy.deepcopy(unet, memo=dict(empty)), config, num_steps, make)
    names = calibration_tensors(integer)  # of the activations alone, since no layer is simulated
    fill_calibration(integer, {name: tensor for name, tensor in stored.items() if name in names}, path)
    return integer
