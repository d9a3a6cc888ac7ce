"""Decoupled error correction (CacheQuant, arXiv 2503.01323): the two tables, fitted on full-precision runs.

F_i [B, C, h, w] is the feature at step i and s the last refresh step up to i. With a forecast its result, from the features of the
last refresh steps, takes the place of F_s. Each fit takes one pass over the runs and holds the features of the current batch that
can still be used.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iec.efficiency.cachequant.network import CacheTables
from iec.efficiency.cachequant.regression import AffineRegression
from iec.efficiency.cachequant.trajectories import FloatRuns, with_source
from iec.efficiency.caching import Cut
from iec.efficiency.quantization import QuantizedUNet


def fit_cache(runs: FloatRuns, refresh: frozenset[int], count: int, official_divisors: bool = False) -> CacheTables:
    """(a_i, b_i): least squares of F_i on F_s per channel, over ``count`` images and all pixels, for every i not in ``refresh``."""
    regression = AffineRegression(len(runs.table), runs.network.cut.channels, runs.network.device)
    for call, source in with_source(runs.calls(count, "cache correction"), refresh, runs.network.forecast):
        if call.step.index not in refresh:
            regression.add(call.step.index, source, call.feature)
    return CacheTables(refresh, *regression.solve(official_divisors))


@torch.no_grad()
def fit_quantization(
    runs: FloatRuns,
    quantized: QuantizedUNet,
    tables: CacheTables,
    count: int,
    official_divisors: bool = False,
    official_bias: bool = False,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(alpha, beta), float64 [T, O], of each layer that can be corrected: tables for `QuantLayer.set_correction`.

    With C_i = F_i at refresh steps and a_i F_s + b_i at the others, U_i what the layer gets of it (`Consumer`), W the float weight
    on the first half of its input channels, Wq and Q_i the deployed weight and input quantizer of that half,

        Y = conv(W, U_i),   X = conv(Wq, Q_i(U_i)),   alpha_i X + beta_i ~ Y   per output channel, for every i.

    official_bias: as in the released code, where both sides hold the layer's bias while the layer adds it once more: beta is
    larger by (1 - alpha) bias.
    """
    consumer = Consumer(runs.network.module, runs.network.cut)
    deployed = {name: quantized.layers()[name] for name in consumer.layers}
    steps, tables = len(runs.table), tables.to(runs.network.device)
    regressions = {
        name: AffineRegression(steps, len(layer.quantized_weight), runs.network.device) for name, layer in deployed.items()
    }
    for call, source in with_source(runs.calls(count, "quantization correction"), tables.refresh, runs.network.forecast):
        i = call.step.index
        feature = source if i in tables.refresh else tables.apply(i, source)
        for name, u in consumer.inputs(feature).items():
            layer = deployed[name]
            with quantized.context.reading(i):
                uq = layer.inputs[0](u) if layer.inputs else u
            x = _half_output(layer.layer, layer.quantized_weight, uq)
            y = _half_output(layer.layer, consumer.layers[name].weight, u)
            regressions[name].add(i, x, y)
    found = {}
    for name, regression in regressions.items():
        alpha, beta = regression.solve(official_divisors)
        bias = consumer.layers[name].bias
        if official_bias and bias is not None:
            beta = beta + (1 - alpha) * bias.double()
        found[name] = (alpha, beta)
    return found


def _half_output(layer: Any, weight: Tensor, u: Tensor) -> Tensor:
    """What the convolution ``layer``, with ``weight`` [O, I, ..], makes of the first channels of its input, without the bias."""
    return layer._conv_forward(u, weight[:, : u.shape[1]], None)


class Consumer:
    """The residual block that takes cat([C, skip]), as far as the first half C goes.

    layers: its layers, by name, whose input has a first half that depends on C alone. That is the 1x1 shortcut, which gets C
    itself, and, where no group holds channels of both halves (`Cut.separable`), the first convolution, which gets
    nonlinearity(GroupNorm(C)) with the first half of the affine map. The time embedding enters after both, in every variant.
    (Up- and downsampling are never in this block: they are modules of their own in the UNets that can be cut.)
    """

    def __init__(self, unet: Any, cut: Cut) -> None:
        self.block: Any = unet.get_submodule(cut.consumer)
        self.channels, self._shortcut = cut.channels, f"{cut.consumer}.conv_shortcut"
        names = [name for name in cut.layers if name == self._shortcut or cut.separable]
        self.layers: dict[str, Any] = {name: unet.get_submodule(name) for name in names}

    def inputs(self, feature: Tensor) -> dict[str, Tensor]:
        """First halves of the inputs of `layers`, each [B, C, h, w], for C = ``feature``."""
        return {name: feature if name == self._shortcut else self._normalized(feature) for name in self.layers}

    def _normalized(self, feature: Tensor) -> Tensor:
        norm, half = self.block.norm1, slice(self.channels)
        groups = self.channels * norm.num_groups // norm.num_channels
        return self.block.nonlinearity(F.group_norm(feature, groups, norm.weight[half], norm.bias[half], norm.eps))
