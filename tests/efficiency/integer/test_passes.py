import subprocess

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from iec.efficiency.integer.codes import Codes, Geometry
from iec.efficiency.integer.passes import Passes, fused_passes
from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.steps import ActivationQuantizer, StepContext
from iec.errors import DeviceError
from tests.efficiency.integer.test_products import CONVOLUTIONS, integers, reference


@pytest.fixture
def quantizer():
    context = StepContext(1)
    own = ActivationQuantizer("input", 8, PTQConfig(scale_rule="max"), context)
    with context.calibrating(0):
        own(torch.randn(4096) * 3 - 1)
    with context.reading(0):
        yield own


def test_codes_are_the_simulations_even_on_the_rounding_borders(passes, quantizer):
    grid = delta, low, _ = quantizer.grid()
    x = (torch.arange(-300, 300) + 0.5) * delta  # on borders, as nearly as float32 can be
    x = torch.cat([x, x.nextafter(x + 1), x.nextafter(x - 1), torch.randn(100_000) * 100 * delta]).view(8, -1)
    codes = passes.codes(x, grid)
    assert torch.equal((codes.q + low) * delta, quantizer(x))
    assert torch.equal(codes.sums, codes.q.sum(-1, dtype=torch.int32))
    assert torch.equal(passes.on_grid(x, grid), quantizer(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("part", [slice(0, 20), slice(0, 13), slice(13, 20)])
def test_codes_of_an_image_and_of_half_of_its_channels_are_dense_rows(passes, quantizer, layout, part):
    x = torch.randn(3, 20, 5, 4).contiguous(memory_format=layout).permute(0, 2, 3, 1)[..., part]
    codes, (delta, low, _) = passes.codes(x, quantizer.grid()), quantizer.grid()
    assert codes.q.is_contiguous()
    assert torch.equal((codes.q + low) * delta, quantizer(x))
    assert torch.equal(codes.sums, codes.q.sum(-1, dtype=torch.int32))


@pytest.mark.parametrize("split", [None, 10])
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_norm_silu_and_codes_in_one_pass_are_those_of_torch_up_to_float32(fused, quantizer, split, with_add, threads):
    norm = nn.GroupNorm(4, 24, eps=1e-5).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x, add = 5 + torch.randn(3, 24, 9, 8), torch.randn(3, 24) if with_add else None
    delta, low, high = quantizer.grid()
    grids = [(delta, low, high)] if split is None else [(delta, low, high), (delta / 3, -7.0, 248.0)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = fused.norm_silu_codes(x, add, norm, grids, split)
    finally:
        torch.set_num_threads(before)
    theirs = Passes().norm_silu_codes(x, add, norm, grids, split)
    y = F.silu(norm.double()(x.double() if add is None else x.double() + add[:, :, None, None]))
    halves = [y] if split is None else [y[:, :split], y[:, split:]]
    for a, b, half, grid in zip(ours, theirs, halves, grids, strict=True):
        different = a.q != b.q
        assert different.double().mean() < 1e-3
        exact = half.permute(0, 2, 3, 1) / grid[0].double()
        assert bool(((exact - exact.floor() - 0.5).abs()[different] < 1e-4).all())  # only on borders
        assert torch.equal(a.sums, a.q.sum(-1, dtype=torch.int32))


def test_the_library_is_compiled_once(tmp_path, monkeypatch, fused):
    fused_passes(tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    assert fused_passes(tmp_path) is fused_passes(tmp_path)
    assert len(list(tmp_path.glob("passes-*.so"))) == 1


@pytest.mark.parametrize("compiler", [None, "no-such-compiler", "false"])
def test_without_a_compiler_the_unfused_passes_are_named(tmp_path, monkeypatch, compiler):
    if compiler is None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setenv("CXX", compiler)
    with pytest.raises(DeviceError, match="kernels=int8_unfused"):
        fused_passes(tmp_path)
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.parametrize("z", [0, 7, 300])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_an_offset_times_the_window_sums_is_added(passes, options, z):
    conv = nn.Conv2d(24, 20, **options)
    q = integers(0, 256, 2, 9, 8, 24).to(torch.uint8)
    codes, geometry, factor = Codes(q, q.sum(-1, dtype=torch.int32)), Geometry.of(conv), torch.randn(20)
    sums = reference(q.permute(0, 3, 1, 2), z, torch.ones_like(conv.weight), geometry)
    y = torch.zeros(sums.shape).contiguous(memory_format=torch.channels_last)
    assert torch.equal(passes.add_offset(y, codes, z, conv.weight.shape, geometry, factor), sums * factor.view(-1, 1, 1))
