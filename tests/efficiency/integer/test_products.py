import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from iec.efficiency.integer.codes import Codes, Geometry
from iec.efficiency.integer.codes import window_sums as window_sums_of
from iec.errors import ConfigError

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": (3, 5), "padding": (2, 1), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": 1, "groups": 4},
]
ZERO_POINTS = (0, 7, 128, 255, -40, 300)  # beyond 0 .. 255: 0 is not on the grid, and is what is padded all the same


def integers(low, high, *shape):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def window_sums(q, z, shape, geometry):
    rows = q.permute(0, 2, 3, 1) if geometry else q
    return window_sums_of(Codes(rows, rows.sum(-1, dtype=torch.int32)), z, shape, geometry)


def exact(sums, scale, bias=0.0, out=0.0):
    """int64 sums as the kernels return them: one rounding to float32, then float32 arithmetic."""
    return sums.float() * scale + bias + out


def reference(q, z, w, geometry):
    """sum (q - z) w in int64, tap by tap."""
    if geometry is None:
        return (q.long() - z) @ w.long().T
    (top, left), (sh, sw), (dh, dw) = geometry.padding, geometry.stride, geometry.dilation
    x = F.pad(q.long() - z, (left, left, top, top))
    groups, (outputs, inputs, kh, kw) = geometry.groups, w.shape
    high, wide = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    sums = torch.zeros(len(x), outputs, high, wide, dtype=torch.int64)
    for i in range(kh):
        for j in range(kw):
            tap = x[:, :, i * dh : i * dh + sh * (high - 1) + 1 : sh, j * dw : j * dw + sw * (wide - 1) + 1 : sw]
            parts = zip(tap.split(inputs, 1), w[:, :, i, j].long().split(outputs // groups), strict=True)
            sums += torch.cat([torch.einsum("bihw,oi->bohw", part, weight) for part, weight in parts], 1)
    return sums


@pytest.mark.parametrize("z", ZERO_POINTS)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_sums_of_a_convolution_are_those_of_int64_bit_for_bit(product, options, z):
    conv = nn.Conv2d(24, 20, **options)
    geometry = Geometry.of(conv)
    q = integers(0, 256, 2, 24, 9, 8).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    w = integers(-128, 128, *conv.weight.shape).to(torch.int8)
    sums = reference(q, z, w, geometry)
    assert product(w, geometry)(q, z, torch.ones(20)).equal(exact(sums, 1.0))
    windows = reference(q, z, torch.ones(geometry.groups, *w.shape[1:]), geometry)
    assert window_sums(q, z, w.shape, geometry).equal(windows.to(torch.float32))


@pytest.mark.parametrize("z", ZERO_POINTS)
@pytest.mark.parametrize("shape", [(37,), (4, 37), (2, 20, 64)])
def test_sums_of_a_linear_layer_are_those_of_int64_bit_for_bit(product, shape, z):
    q, w = integers(0, 256, *shape).to(torch.uint8), integers(-128, 128, 12, shape[-1]).to(torch.int8)
    assert product(w, None)(q, z, torch.ones(12)).equal(exact(reference(q, z, w, None), 1.0))
    assert window_sums(q, z, w.shape, None).equal((q.long() - z).sum(-1, keepdim=True).float())


def test_the_largest_sums_do_not_overflow(product):
    q, w = torch.full((1, 512, 3, 3), 255, dtype=torch.uint8), torch.full((8, 512, 3, 3), -128, dtype=torch.int8)
    geometry = Geometry.of(nn.Conv2d(512, 8, 3))
    q = q.contiguous(memory_format=torch.channels_last)
    assert product(w, geometry)(q, 0, torch.ones(8)).equal(torch.full((1, 8, 1, 1), -255.0 * 128 * 512 * 9))
    assert window_sums(q, -10000, w.shape, geometry).item() == (255 + 10000) * 512 * 9  # beyond 2^24


@pytest.mark.parametrize("geometry", [Geometry((1, 1), (1, 1), (1, 1), 1), None], ids=["convolution", "linear"])
def test_scale_bias_and_what_is_there_already_are_added_in_float32(product, geometry):
    shape, weight = ((2, 16, 5, 5), (8, 16, 3, 3)) if geometry else ((2, 6, 16), (8, 16))
    q, w = integers(0, 256, *shape).to(torch.uint8), integers(-128, 128, *weight).to(torch.int8)
    scale, bias = torch.rand(8), torch.randn(8)
    spread = (-1, 1, 1) if geometry else (-1,)
    out = torch.randn_like(reference(q, 3, w, geometry), dtype=torch.float32)
    if geometry:
        out = out.contiguous(memory_format=torch.channels_last)
    expected = exact(reference(q, 3, w, geometry), scale.view(spread), bias.view(spread), out)
    torch.testing.assert_close(product(w, geometry)(q, 3, scale, bias, out.clone()), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("options", [{"padding_mode": "reflect", "padding": 1}, {"padding": "same"}])
def test_other_padding_is_refused_with_a_way_out(options):
    with pytest.raises(ConfigError, match="kernels=simulated"):
        Geometry.of(nn.Conv2d(3, 3, 3, **options))


def test_a_cpu_without_vnni_is_refused_with_its_instruction_sets():
    code = (
        "from iec.efficiency.integer.products import OneDNN, PatchMatmul, require_exact_sums\n"
        "from iec.errors import DeviceError\n"
        "for kind in (OneDNN, PatchMatmul):\n"
        "    try:\n"
        "        require_exact_sums(kind)\n"
        "    except DeviceError as error:\n"
        "        print(error)\n"
    )
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert found.count("Use efficiency.kernels=simulated") == 2
    assert found.count("avx2") == 2
