"""Products of 8-bit integers, summed in 32 bits: oneDNN's on a CPU, and a matrix product of patches that GPUs have, too.

A product takes the codes q of an input, uint8 [B, I, H, W] or [.., I], its zero point z (any whole number), and a scale [O]:

    y = scale (sum (q - z) w) + bias + out,      float32,

w the 8-bit weight, the sum over the window and the input channels, exact in 32 bits. What a convolution pads has the value 0,
which is q = z.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iec.efficiency.integer.codes import Geometry
from iec.errors import DeviceError
from iec.io.environment import instruction_sets

UNSIGNED = 128
"""uint8 q is int8 q - 128."""
INT_MM_ROWS, INT_MM_MULTIPLE = 17, 8
"""What CUDA's ``torch._int_mm`` asks for: the fewest rows, and what the two other sizes are multiples of."""


class Product(ABC):
    """See above. geometry: None for a linear layer."""

    def __init__(self, codes: Tensor, geometry: Geometry | None) -> None:
        """codes: int8 [O, I / groups, kH, kW] or [O, I]."""
        self.shape, self.geometry = codes.shape, geometry

    @abstractmethod
    def __call__(self, q: Tensor, z: int, scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """y; ``out`` may be overwritten. q and ``out`` of a convolution are channels-last."""


class OneDNN(Product):
    """Through PyTorch's oneDNN operators. The weight is kept once, in oneDNN's own order. Outputs are channels-last."""

    def __init__(self, codes: Tensor, geometry: Geometry | None) -> None:
        super().__init__(codes, geometry)
        require_exact_sums(OneDNN)
        self._ones = torch.ones(len(codes))
        self._zeros = torch.zeros(len(codes), dtype=torch.int32)
        if geometry is None:
            self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
        else:
            self._places = (list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups)
            self._packed = torch.ops.onednn.qconv_prepack(codes, self._ones, 1.0, 0, *self._places, None)

    def __call__(self, q: Tensor, z: int, scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        onednn, end = torch.ops.onednn, (1.0, 0, torch.float32)  # scale, zero point and type of the output
        head = (q, 1.0, z, self._packed, scale, self._zeros)
        if self.geometry is None:
            y = onednn.qlinear_pointwise(*head, bias, *end, "none", [], "")
            return y if out is None else y.add_(out)
        if out is None:
            return onednn.qconv_pointwise(*head, bias, *self._places, *end, "none", [], "")
        return onednn.qconv2d_pointwise.binary(*head, out, bias, *self._places, *end, 1.0, 0, "sum", 1.0, None, [], None)


class PatchMatmul(Product):
    """Patches (im2col) times weight by ``torch._int_mm``, which CUDA and CPU have. Signed: q and z are moved by 128.

    Patches are padded with 0 and not with z, which need not be an 8-bit number; z times the weights of the taps that lie inside is
    subtracted afterwards, for each place of the output.
    """

    def __init__(self, codes: Tensor, geometry: Geometry | None) -> None:
        super().__init__(codes, geometry)
        if codes.device.type == "cpu":
            require_exact_sums(PatchMatmul)
        groups = 1 if geometry is None else geometry.groups
        self._columns = codes.shape[1:].numel()
        self._matrices = [_padded(part.flatten(1), INT_MM_MULTIPLE, INT_MM_MULTIPLE).T for part in codes.chunk(groups)]
        self._taps = codes.sum(1, dtype=torch.int32, keepdim=True)  # [O, 1, ..]: over the input channels

    def __call__(self, q: Tensor, z: int, scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        q, z = (q ^ UNSIGNED).view(torch.int8), z - UNSIGNED
        if self.geometry is None:
            y = (self._sums(q.reshape(-1, q.shape[-1])) - z * self._taps[:, 0]) * scale
            y = (y if bias is None else y + bias).view(*q.shape[:-1], -1)
        else:
            y = (self._convolved(q, self.geometry) - z * self._inside(q, self.geometry)) * scale
            y = (y if bias is None else y + bias).permute(0, 3, 1, 2)  # B x H x W x O before
        return y if out is None else y.add_(out)

    def _convolved(self, q: Tensor, geometry: Geometry) -> Tensor:
        """int32 [B, H, W, O]."""
        (below, right), kernel = geometry.padding, self.shape[2:]
        q = F.pad(q, (right, right, below, below))
        for k, stride, dilation, axis in zip(kernel, geometry.stride, geometry.dilation, (2, 3), strict=True):
            q = q.unfold(axis, (k - 1) * dilation + 1, stride)[..., ::dilation]
        patches = q.permute(0, 2, 3, 1, 4, 5)  # B x H x W x I x kH x kW
        size = patches.shape[:3]
        parts = patches.chunk(geometry.groups, dim=3)
        sums = [self._sums(part.reshape(size.numel(), -1), g) for g, part in enumerate(parts)]
        return torch.cat(sums, dim=1).view(*size, -1)

    def _sums(self, rows: Tensor, group: int = 0) -> Tensor:
        """int32 [n, O / groups] of int8 [n, I / groups kH kW]."""
        padded = _padded(rows, INT_MM_ROWS if len(rows) < INT_MM_ROWS else 1, INT_MM_MULTIPLE)
        outputs = self.shape[0] // len(self._matrices)
        return torch._int_mm(padded, self._matrices[group])[: len(rows), :outputs]

    def _inside(self, q: Tensor, geometry: Geometry) -> Tensor:
        """int32 [1, H, W, O]: the sum of the weights of the taps that do not lie in the padding."""
        taps = self._taps.to(torch.float64)
        ones = taps.new_ones(1, 1, *q.shape[2:])
        inside = F.conv2d(ones, taps, None, geometry.stride, geometry.padding, geometry.dilation)
        return inside.to(torch.int32).permute(0, 2, 3, 1)


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """With zeros to a multiple of both, contiguous."""
    return F.pad(matrix, (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows)).contiguous()


@cache
def require_exact_sums(kind: type[Product]) -> None:
    """Raises `DeviceError` on a CPU whose 8-bit products are not summed exactly.

    Before VNNI, two products of 8 bits are added in 16 bits and cut off there. It is tried, once, on the largest numbers.
    """
    q, w = torch.full((1, 64), 255, dtype=torch.uint8), torch.full((8, 64), 127, dtype=torch.int8)
    if kind is OneDNN:
        output: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
        packed, scales = torch.ops.onednn.qlinear_prepack(w, None), (torch.ones(8), torch.zeros(8, dtype=torch.int32))
        sums = torch.ops.onednn.qlinear_pointwise(q, 1.0, 0, packed, *scales, None, *output)
        expected = 64 * 255 * 127
    else:
        sums, expected = torch._int_mm((q ^ UNSIGNED).view(torch.int8), w.T.contiguous()), 64 * 127 * 127
    if not bool((sums == expected).all()):
        raise DeviceError(
            f"This CPU adds products of 8-bit integers in 16 bits and cuts the sums off (instruction sets: "
            f"{', '.join(instruction_sets()) or 'none known'}; VNNI or AMX is needed). Use efficiency.kernels=simulated."
        )
