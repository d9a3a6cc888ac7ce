"""Where the codes of a network on integers differ from those of its simulation: values on a rounding border."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.integer.attention import Operand
from iec.efficiency.integer.codes import Codes, Geometry
from iec.efficiency.integer.layers import IntegerLayer
from iec.efficiency.integer.passes import Grid, Passes
from iec.efficiency.quantization import QuantizedNetwork, QuantizedUNet
from iec.efficiency.quantization.steps import ActivationQuantizer
from iec.sampling.network import Step


@dataclass(frozen=True)
class Crossings:
    """Of one network call; values are the quantized inputs of all layers and of the products of attention.

    values: how many there are.
    on_border: those with another code although every code before them is the simulation's. The order of float sums alone has moved
        them, so they sit on a rounding border.
    error: of eps where every value gets the code of the simulation; the largest, relative to the largest eps.
    crossed: those with another code where the integers go on with their own codes: on a border, or behind such a value.
    """

    values: int
    on_border: int
    error: float
    crossed: int


@torch.no_grad()
def count_crossings(
    simulated: QuantizedUNet, integer: QuantizedUNet, x: Tensor, step: Step, cond: Tensor | None = None
) -> Crossings:
    """Of the call (x, step, cond). The two have one calibration, in float32; ``integer`` is on integers. Takes three calls."""
    expected: dict[str, list[Tensor]] = defaultdict(list)

    def note(quantizer: ActivationQuantizer, _: object, xq: Tensor) -> None:
        expected[quantizer.name].append(xq)

    handles = [m.register_forward_hook(note) for m in simulated.modules() if isinstance(m, ActivationQuantizer)]
    eps = QuantizedNetwork(simulated)(x, step, cond).eps
    for handle in handles:
        handle.remove()
    forced, free = _Comparison(expected, replace=True), _Comparison(expected, replace=False)
    ours = forced.eps(integer, x, step, cond)
    free.eps(integer, x, step, cond)
    return Crossings(forced.values, forced.different, float((ours - eps).abs().max() / eps.abs().max()), free.different)


class _Comparison:
    """Counts the values of a call that differ from ``expected``, quantizer -> xq of each of its calls.

    replace: whether the call goes on with the expected ones.
    """

    def __init__(self, expected: Mapping[str, Sequence[Tensor]], replace: bool) -> None:
        self.expected = {name: iter(values) for name, values in expected.items()}
        self.replace = replace
        self.values = self.different = 0

    def eps(self, integer: QuantizedUNet, x: Tensor, step: Step, cond: Tensor | None) -> Tensor:
        """Of a call in which every layer's passes are compared."""
        own = {module: module.passes for module in integer.modules() if isinstance(module, IntegerLayer | Operand)}
        for module, passes in own.items():
            module.passes = _Compared(passes, module, self)
        try:
            return QuantizedNetwork(integer)(x, step, cond).eps
        finally:
            for module, passes in own.items():
                module.passes = passes

    def taken(self, name: str, found: Tensor, form: Callable[[Tensor], Tensor]) -> Tensor:
        """``found``, or what was expected of the quantizer ``name``, in the same ``form``."""
        expected = form(next(self.expected[name]))
        self.values += found.numel()
        self.different += int((found != expected).sum())
        return expected if self.replace else found


class _Compared(Passes):
    """The ``passes`` of one layer or operand, compared."""

    def __init__(self, passes: Passes, module: nn.Module, comparison: _Comparison) -> None:
        self.passes, self.comparison = passes, comparison
        self.image = isinstance(module, IntegerLayer) and module.geometry is not None
        quantizers: Any = module.inputs if isinstance(module, IntegerLayer) else [module.quantizer]
        self.names: Iterator[str] = cycle([quantizer.name for quantizer in quantizers])

    def codes(self, x: Tensor, grid: Grid) -> Codes:
        return self._compared(self.passes.codes(x, grid), grid)

    def norm_silu_codes(
        self, x: Tensor, add: Tensor | None, norm: nn.GroupNorm, grids: list[Grid], split: int | None
    ) -> list[Codes]:
        found = self.passes.norm_silu_codes(x, add, norm, grids, split)
        return [self._compared(codes, grid) for codes, grid in zip(found, grids, strict=True)]

    def on_grid(self, x: Tensor, grid: Grid) -> Tensor:
        return self.comparison.taken(next(self.names), self.passes.on_grid(x, grid), lambda xq: xq)

    def add_offset(self, y: Tensor, codes: Codes, z: int, shape: torch.Size, geometry: Geometry | None, factor: Tensor) -> Tensor:
        return self.passes.add_offset(y, codes, z, shape, geometry, factor)

    def _compared(self, found: Codes, grid: Grid) -> Codes:
        delta, low, _ = grid

        def form(xq: Tensor) -> Tensor:
            q = ((xq / delta).round() - low).to(torch.uint8)
            return (q.permute(0, 2, 3, 1) if self.image else q).contiguous()

        q = self.comparison.taken(next(self.names), found.q, form)
        return Codes(q, q.sum(-1, dtype=torch.int32))
