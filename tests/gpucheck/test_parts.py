"""What the parts measure: their limits, that what is wrong exceeds them, and what they do on a GPU that this machine lacks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from iec.gpucheck import machine, networks, same_bytes
from iec.gpucheck.arithmetic import BFLOAT16, FLOAT16, FLOAT32, TF32, compared, depth, relative_error, supported
from iec.gpucheck.models import tiny
from iec.gpucheck.option_list import GROUPS, NOT_HERE, REHEARSED, options
from iec.gpucheck.options import Trials, perturbed_by
from iec.gpucheck.part import Bench
from iec.io.resources import configs
from iec.models.architecture import build
from iec.sampling.network import Prediction, Step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def bench(tmp_path):
    return Bench(CPU, "toy", tmp_path)


def test_the_limit_of_float32_is_below_what_tf32_does_and_all_are_below_a_wrong_answer():
    limits = [arithmetic.limit(200, 10_000) for arithmetic in (FLOAT32, TF32, FLOAT16, BFLOAT16)]
    assert limits == sorted(limits)
    assert limits[0] * 40 < 200**0.5 * TF32.roundoff
    assert limits[-1] < 0.25


def test_depth_counts_the_layers_and_the_longest_sum():
    module = nn.Sequential(nn.Conv2d(8, 4, 3), nn.SiLU(), nn.GroupNorm(2, 4), nn.Linear(4, 100))
    assert depth(module) == (3, 8 * 9)


def test_a_nan_is_over_the_limit():
    one = torch.ones(3)
    assert compared("x", FLOAT32, one * float("nan"), one, (1, 1)).verdict == "over"
    assert compared("x", FLOAT32, one, one, (1, 1)).verdict == "ok"
    assert relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == 0.2


def test_arithmetic_is_as_before_afterwards_whatever_happens():
    matmul, cudnn, onednn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn

    def state():
        return matmul.allow_tf32, cudnn.allow_tf32, onednn.enabled

    before = state()
    with pytest.raises(ValueError), TF32.active(CUDA):
        assert state() == (True, True, True)
        raise ValueError
    with FLOAT32.active(CUDA):
        assert state() == (False, False, True)
    with FLOAT32.active(CPU):
        assert state() == (False, False, False)
    assert state() == before


def test_a_gpu_has_four_arithmetics_and_a_cpu_two():
    assert [a.name for a in supported(CUDA)] == ["float32", "TF32", "bfloat16", "float16"]
    assert [a.name for a in supported(CPU)] == ["float32", "bfloat16"]


def test_one_weight_that_is_wrong_on_the_device_is_seen(bench, monkeypatch):
    right = networks.on

    def wrong(device, module, dtype):
        copy = right(device, module, dtype)
        weights = [parameter for parameter in copy.parameters() if parameter.ndim > 1]
        weights[len(weights) // 2].mul_(-1)
        return copy

    assert {line.verdict for line in networks.architecture_lines(bench, "dit_imagenet")} == {"ok"}
    monkeypatch.setattr(networks, "on", wrong)
    assert next(networks.architecture_lines(bench, "dit_imagenet")).verdict == "over"


def test_latents_near_codes_are_moved_to_these_codes():
    quantize = build(tiny("ldm_imagenet").decoder).quantize
    codes = quantize.embedding.weight
    z = networks.near_codes(codes, torch.randn(2, 3, 4, 4))
    nearest = torch.cdist(z.movedim(1, -1).flatten(0, 2), codes).argmin(1)
    assert nearest.tolist() == list(range(32))


def test_every_option_of_the_configuration_is_compared_or_has_a_reason():
    listed = {f"{group}={path.stem}" for group in GROUPS for path in (configs() / group).glob("*.yaml")}
    names = [option.name for option in options("full")]
    assert listed - {*names} - NOT_HERE.keys() == {"iec=none", "corrector=none"}  # as efficiency=none has them
    assert len({*names}) == len(names)
    assert {option.name for option in options("toy")} == REHEARSED


@pytest.mark.parametrize(("of_device", "verdict"), [(1 + 1e-7, "ok"), (1.002, "ok"), (1.01, "over")])
def test_an_option_that_rounds_is_allowed_what_rounding_does_to_it(bench, monkeypatch, of_device, verdict):
    """Its result changes by 0.1 % when calls are perturbed, so that the limit is 0.4 %."""
    trials, one = Trials(bench), torch.ones(4)
    results = {"reference": one, "device": of_device * one, "perturbed": 1.001 * one}
    calls = iter(("device", "perturbed"))
    monkeypatch.setattr(trials, "reference", lambda _: results["reference"])
    monkeypatch.setattr(trials, "model", lambda *_: SimpleNamespace(unet=nn.Linear(2, 2)))
    monkeypatch.setattr(trials, "final_state", lambda *_, **__: results[next(calls)])
    line = trials.compared("x", options("toy")[0], FLOAT32)
    assert line.verdict == verdict
    assert line.limit == pytest.approx(FLOAT32.limit(1, 2) if of_device < 1.001 else 0.004, rel=1e-3)


def test_a_call_is_perturbed_before_and_after_by_as_much_as_asked():
    seen = []

    def network(x, step, cond=None, cache=None):
        seen.append(x)
        return Prediction(torch.ones(10_000, dtype=torch.float64))

    x = torch.ones(10_000, dtype=torch.float64)
    eps = perturbed_by(1e-3)(network)(x, Step(0, 1)).eps
    assert relative_error(seen[0], x) == pytest.approx(1e-3, rel=0.05)
    assert relative_error(eps, x) == pytest.approx(1e-3, rel=0.05)


def test_every_cell_whose_bytes_are_compared_is_one(tmp_path):
    cells = {
        name: same_bytes.small_cell(Bench(CPU, "full", tmp_path), f"{name} 1", given) for name, given in same_bytes.CELLS.items()
    }
    assert len({cell.slug for cell in cells.values()}) == len(cells)
    for name, cell in cells.items():
        assert cell.folder.parent == tmp_path / f"{name} 1"
        assert cell.artifacts == tmp_path / f"{name} 1" / "artifacts"


def test_operators_are_named_from_torchs_warnings():
    messages = [
        "upsample_bicubic2d_backward does not have a deterministic implementation, but you set ...",
        "Deterministic behavior was enabled, but this operation is not deterministic because it uses CuBLAS and ...",
        "upsample_bicubic2d_backward does not have a deterministic implementation, but you set ...",
        "something else is deprecated",
    ]
    assert same_bytes.operators(messages) == ["CuBLAS", "upsample_bicubic2d_backward"]


def test_bytes_that_differ_or_are_not_there_are_counted():
    a = {"0": ("images", "states"), "1": ("images", "states")}
    assert same_bytes.different("x", a, dict(a)).verdict == "ok"
    line = same_bytes.different("x", a, {"0": ("images", "other"), "1": ("other", "states")})
    assert (line.verdict, line.value, line.remark) == ("over", 2, "images of 1, the others in trajectories alone")
    assert same_bytes.different("x", a, {}).value == 2


@pytest.mark.parametrize(("name", "reason"), [("cuda", "there is 1"), ("cuda:1", "cuda:1 was asked for")])
def test_two_devices_are_skipped_with_the_reason(tmp_path, monkeypatch, name, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    [line] = same_bytes.parallel_lines(Bench(torch.device(name), "full", tmp_path), ())
    assert (line.what, line.verdict, line.remark) == ("devices=2", "skipped", f"needs two devices, and {reason}")


def test_a_gpu_is_described(monkeypatch, tmp_path):
    properties = SimpleNamespace(major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    described = machine.Machine.of(CUDA)
    assert (described.device, described.kind) == ("NVIDIA X (cuda)", "cuda")
    assert described.facts["capability"] == "9.0"
    assert described.facts["memory"] == "80.0 GiB"
    assert described.facts["driver"] == "unknown"  # without nvidia-smi
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 570.1\necho 570.1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert machine.driver_version() == "570.1"


def test_the_version_is_of_the_sources(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = machine.source_version(tmp_path)
    (tmp_path / "weights.safetensors").write_text("2")
    assert machine.source_version(tmp_path) == first
    (tmp_path / "a.py").write_text("2")
    assert machine.source_version(tmp_path) != first
