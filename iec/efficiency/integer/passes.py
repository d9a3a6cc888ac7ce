"""What lies between two products on integers: from float activations to 8-bit codes.

    codes:            q = clamp(round(x / delta), low, high) - low
    norm_silu_codes:  the same of silu(group_norm(x + add)), of one or two parts of the channels, each on its grid
    on_grid:          xq = clamp(round(x / delta), low, high) delta, the operands of attention

    add_offset:       y += factor sum (q - z), of weights with an offset

codes with the sums of q over the channels, int32, which weights with an offset need. Two ways: one after another in torch, or
fused, each in one pass over memory, by a small C++ library that is compiled when it is first used. Between products the memory
traffic of separate passes takes longer than the products do.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iec.efficiency.integer.codes import Codes, Geometry, window_sums
from iec.efficiency.quantization.quantizer import round_to_grid
from iec.efficiency.quantization.steps import Bound
from iec.errors import DeviceError
from iec.io.environment import instruction_sets
from iec.io.files import write_atomic
from iec.io.locks import exclusive
from iec.io.progress import stage

Grid = tuple[Tensor, Bound, Bound]
"""delta, low and high of one step of an activation quantizer."""
SOURCE = Path(__file__).with_name("passes.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
LINKED = ("-shared", "-fPIC", "-pthread")


class Passes:
    """One operation of torch after another."""

    def codes(self, x: Tensor, grid: Grid) -> Codes:
        """x: [.., C]."""
        delta, low, high = grid
        q = torch.div(x.float(), delta).round_().clamp_(low, high).sub_(low).to(torch.uint8).contiguous()  # type: ignore[arg-type]
        return Codes(q, q.sum(-1, dtype=torch.int32))

    def norm_silu_codes(
        self, x: Tensor, add: Tensor | None, norm: nn.GroupNorm, grids: list[Grid], split: int | None
    ) -> list[Codes]:
        """x: [B, C, H, W]. add: [B, C] or None. split: the channels of the first of two grids, None for one."""
        y = F.silu(norm(x if add is None else x + add[:, :, None, None])).permute(0, 2, 3, 1)
        halves = [y] if split is None else [y[..., :split], y[..., split:]]
        return [self.codes(half, grid) for half, grid in zip(halves, grids, strict=True)]

    def on_grid(self, x: Tensor, grid: Grid) -> Tensor:
        return round_to_grid(x.float(), *grid)

    def add_offset(self, y: Tensor, codes: Codes, z: int, shape: torch.Size, geometry: Geometry | None, factor: Tensor) -> Tensor:
        """y += factor sum (q - z), in place; y: [B, O, H, W], channels-last, or [.., O]. factor: [O]. shape: of the weight."""
        sums = window_sums(codes, z, shape, geometry)
        if geometry is None:
            return y.addcmul_(sums, factor)
        if geometry.groups > 1:  # a group's sum is that of its output channels
            sums = sums.repeat_interleave(y.shape[1] // geometry.groups, 1)
        return y.addcmul_(sums, factor.view(-1, 1, 1))


class FusedPasses(Passes):
    """Through the library; on a CPU, in float32. Its division and rounding are torch's; group norm and SiLU agree to float32."""

    def __init__(self, library: Path) -> None:
        self._library: Any = ctypes.CDLL(str(library))

    def codes(self, x: Tensor, grid: Grid) -> Codes:
        delta, low, high = _numbers(grid)
        x = x.float() if _is_rows(x) else x.float().contiguous()
        q, sums = torch.empty(x.shape, dtype=torch.uint8), torch.empty(x.shape[:-1], dtype=torch.int32)
        channels = x.shape[-1]
        stride = x.stride(-2) if x.ndim > 1 else channels
        self._library.iec_quantize(
            _pointer(x), _long(sums.numel()), _long(channels), _long(stride), *(_float(v) for v in (delta, low, high)),
            _pointer(q), _pointer(sums), torch.get_num_threads(),
        )  # fmt: skip
        return Codes(q, sums)

    def norm_silu_codes(
        self, x: Tensor, add: Tensor | None, norm: nn.GroupNorm, grids: list[Grid], split: int | None
    ) -> list[Codes]:
        x = x.float().contiguous(memory_format=torch.channels_last)
        images, channels, high, wide = x.shape
        split = channels if split is None else split
        own = None if add is None else add.float().contiguous()
        weight, bias = norm.weight.float(), norm.bias.float()
        found = [
            Codes(torch.empty(images, high, wide, n, dtype=torch.uint8), torch.empty(images, high, wide, dtype=torch.int32))
            for n in (split, channels - split)[: len(grids)]
        ]
        first, last = found[0], found[-1]
        values = (ctypes.c_float * 6)(*_numbers(grids[0]), *_numbers(grids[-1]))
        self._library.iec_norm_silu_quantize(
            *(_pointer(t) for t in (x, own, weight, bias)), *(_long(n) for n in (images, high * wide, channels, split)),
            _long(norm.num_groups), ctypes.c_double(norm.eps), values,
            *(_pointer(t) for t in (first.q, last.q, first.sums, last.sums)), torch.get_num_threads(),
        )  # fmt: skip
        return found

    def on_grid(self, x: Tensor, grid: Grid) -> Tensor:
        x = x.float().contiguous()
        y = torch.empty_like(x)
        numbers = (_float(v) for v in _numbers(grid))
        self._library.iec_round_to_grid(_pointer(x), _long(x.numel()), *numbers, _pointer(y), torch.get_num_threads())
        return y

    def add_offset(self, y: Tensor, codes: Codes, z: int, shape: torch.Size, geometry: Geometry | None, factor: Tensor) -> Tensor:
        if geometry is not None and geometry.groups > 1:
            return super().add_offset(y, codes, z, shape, geometry, factor)
        if geometry is None:  # rows, as an image of one line
            rows = codes.sums.numel()
            sizes = (1, 1, rows, 1, 1, 1, 1, 0, 0, 1, 1, 1, rows)
        else:
            window = (*shape[2:], *geometry.stride, *geometry.padding, *geometry.dilation)
            sizes = (*codes.sums.shape, *window, *y.shape[2:])
        numbers = (ctypes.c_int64 * 14)(*sizes, len(factor))
        shift = ctypes.c_int32(z * shape[1])
        self._library.iec_add_offset(_pointer(codes.sums), numbers, shift, _pointer(factor), _pointer(y), torch.get_num_threads())
        return y


def fused_passes(folder: Path | None) -> FusedPasses:
    """The library from ``folder``, compiled first where it is not there, by one process while others wait. None: compiled for this
    process alone.

    Its name tells the source, the compiler and the CPU's instruction sets. Raises `DeviceError` without a C++ compiler.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise DeviceError(
            "efficiency.kernels=int8 compiles its fused passes, and there is no C++ compiler (CXX, g++, clang++). Install one, or "
            "use efficiency.kernels=int8_unfused, which needs none and takes longer."
        )
    if folder is None:
        return _unkept(compiler)
    path = folder / f"passes-{_fingerprint(compiler)}.so"
    if not path.exists():
        with exclusive(path.with_suffix(".lock"), f"compiling {path.name}"), stage("compiling the fused passes", 1) as advance:
            if not path.exists():
                _compile(compiler, path)
            advance()
    return _loaded(path)


@functools.cache
def _loaded(path: Path) -> FusedPasses:
    return FusedPasses(path)


@functools.cache
def _unkept(compiler: str) -> FusedPasses:
    with tempfile.TemporaryDirectory(prefix="iec-") as folder, stage("compiling the fused passes", 1) as advance:
        path = Path(folder) / "passes.so"
        _compile(compiler, path)
        advance()
        return FusedPasses(path)  # which, once loaded, needs no file


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="iec-") as folder:
        built = Path(folder) / path.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(built), *LINKED]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise _uncompiled(command, str(error)) from error
        if done.returncode:
            raise _uncompiled(command, done.stderr)
        write_atomic(path, lambda file: file.write(built.read_bytes()))


def _uncompiled(command: list[str], reason: str) -> DeviceError:
    return DeviceError(
        f"The fused passes cannot be compiled ({' '.join(command)}): {reason.strip()[:500]}. Set CXX to a C++17 compiler, or use "
        "efficiency.kernels=int8_unfused."
    )


@functools.cache
def _fingerprint(compiler: str) -> str:
    parts = (SOURCE.read_text(encoding="utf-8"), compiler, FLAGS, instruction_sets())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _numbers(grid: Grid) -> tuple[float, float, float]:
    delta, low, high = grid
    return float(delta), float(low), float(high)


def _is_rows(x: Tensor) -> bool:
    """Whether the last dimension is dense and the others together are rows of one stride."""
    if x.stride(-1) != 1:
        return False
    return all(x.stride(k) == x.stride(k + 1) * x.shape[k + 1] or x.shape[k] == 1 for k in range(x.ndim - 2))


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _float(value: float) -> ctypes.c_float:
    return ctypes.c_float(value)
