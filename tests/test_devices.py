"""What would be wrong, or slow, on another device than the CPU, found in the sources."""

import ast
from pathlib import Path

import pytest

from iec.gpucheck.waits import REASONS

ROOT = Path(__file__).parents[1] / "iec"
HOT = (
    "sampling",
    "correctors/affine.py",
    "correctors/dcw.py",
    "correctors/es.py",
    "correctors/restart.py",
    "correctors/stepback.py",
    "correctors/timeshift.py",
    "correctors/unic.py",
    "efficiency/added_errors.py",
    "efficiency/cachequant/dec.py",
    "efficiency/cachequant/network.py",
    "efficiency/caching",
    "efficiency/compiled.py",
    "efficiency/integer",
    "efficiency/quantization/attention.py",
    "efficiency/quantization/layers.py",
    "efficiency/quantization/model.py",
    "efficiency/quantization/quantizer.py",
    "efficiency/quantization/steps.py",
    "io/images.py",
    "metrics/clip_score.py",
    "metrics/extractors/efficientnet.py",
    "metrics/extractors/features.py",
    "metrics/extractors/inception.py",
    "models/conditioning.py",
    "models/decoder.py",
    "models/ideal.py",
    "models/inputs.py",
    "models/unet.py",
    "pipelines/corrected.py",
    "pipelines/run.py",
    "pipelines/scheduler.py",
    "pipelines/unet.py",
    "runs/batches.py",
)
"""Modules, and rooms of them, with code that runs at each step or for each batch of images."""
READS = frozenset(("item", "tolist", "cpu", "numpy"))
MADE = frozenset(("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"))
BEFORE = "before the first step"
CPU = "of the CPU alone"
ENDS = "ends a batch of images: they go to files"
ALLOWED = {
    "iec.correctors.stepback.stepped_back": BEFORE,
    "iec.efficiency.added_errors.fingerprint": "one seeded draw an image, by its content",
    "iec.efficiency.cachequant.network.CacheTables.identity": BEFORE,
    "iec.efficiency.cachequant.network.CacheTables.of": BEFORE,
    "iec.efficiency.cachequant.network.CacheTables.tensors": BEFORE,
    "iec.efficiency.integer.passes.FusedPasses.codes": CPU,
    "iec.efficiency.integer.passes.FusedPasses.norm_silu_codes": CPU,
    "iec.efficiency.integer.products.OneDNN.__init__": CPU,
    "iec.efficiency.integer.products.require_exact_sums": CPU,
    "iec.efficiency.quantization.layers.QuantLayer.__init__": "buffers, which move with the module",
    "iec.efficiency.quantization.quantizer._best_of_one": "calibration: which scale to try next",
    "iec.efficiency.quantization.steps.ActivationQuantizer.__init__": "buffers, which move with the module",
    "iec.efficiency.quantization.steps.ActivationQuantizer.refresh": "before the first step, so that steps read nothing",
    "iec.io.images.to_uint8": ENDS,
    "iec.metrics.clip_score.CLIPScorer._cosines": "scores are numbers of the host",
    "iec.metrics.clip_score.CLIPScorer._pixels": "images come from files",
    "iec.metrics.extractors.features.padded": "images come from files, and features go to numpy",
    "iec.metrics.extractors.inception.tensorflow_input": "a number rounded to float32, which is no copy",
    "iec.pipelines.corrected.Corrected.lay_out": BEFORE,
    "iec.pipelines.corrected.Corrected.next_call": "diffusers hands a timestep over as a tensor",
    "iec.pipelines.scheduler.IECScheduler.abar": BEFORE,
    "iec.pipelines.scheduler.IECScheduler.set_timesteps": BEFORE,
    "iec.pipelines.unet.Forward._next": "diffusers hands a timestep over as a tensor",
    "iec.runs.batches.sample_batch": "trajectories, where they are asked for",
}
"""Place -> why it reads values of a tensor, or makes one without a device. Those that wait in the loop: see `REASONS`."""


def hot():
    for name in HOT:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def functions(tree, module):
    """(place, node) of all nodes; a place is named like `iec.gpucheck.waits` does it: by the outermost function."""

    def walk(node, place, inside):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.ClassDef | ast.FunctionDef) and not inside
            below = f"{place}.{child.name}" if named else place
            yield below, child
            yield from walk(child, below, inside or isinstance(child, ast.FunctionDef))

    yield from walk(tree, module, False)


def calls(path):
    module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for place, node in functions(ast.parse(path.read_text()), module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield place, node, node.func


def of_torch(func):
    return isinstance(func.value, ast.Name) and func.value.id == "torch"


def keywords(node):
    return {keyword.arg for keyword in node.keywords}


def reads(path):
    """Places that read values of tensors."""
    return {place for place, node, func in calls(path) if func.attr in READS and not node.args}


def made_on_the_cpu(path):
    """Places that make a tensor where torch puts it by default, or of an array of numpy."""
    return {
        place
        for place, node, func in calls(path)
        if of_torch(func)
        and (func.attr == "from_numpy" or (func.attr in MADE and not keywords(node) & {"device", "generator", None}))
    }


def names_cuda(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(":")[0] == "cuda"


def for_one_device(path):
    """Places that name a device which may not be there."""
    for place, node, func in calls(path):
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "device")]
        if func.attr == "cuda" or (func.attr in {"to", "device", *MADE} and any(names_cuda(value) for value in given)):
            yield place


def test_no_source_names_a_device_that_may_not_be_there():
    found = {place for path in ROOT.rglob("*.py") for place in for_one_device(path)}
    assert found == {"iec.metrics.references.gather._device_of"}  # where one of this kind is given


@pytest.mark.parametrize("find", [reads, made_on_the_cpu])
def test_hot_code_reads_no_values_and_makes_no_tensor_on_the_cpu_but_where_there_is_a_reason(find):
    found = {place for path in hot() for place in find(path)}
    assert found - ALLOWED.keys() - REASONS.keys() == set()


def test_all_that_is_allowed_is_still_there():
    assert ALLOWED.keys() <= {place for path in hot() for find in (reads, made_on_the_cpu) for place in find(path)}


@pytest.mark.parametrize(
    ("find", "source"),
    [
        (reads, "def f(x):\n    return x.item()"),
        (reads, "class A:\n    def f(self, x):\n        def g():\n            return x.cpu().numpy()\n        return g()"),
        (made_on_the_cpu, "def f(x):\n    return torch.zeros(3) + torch.ones(3, device=x.device)"),
        (made_on_the_cpu, "def f(x):\n    return torch.from_numpy(x)"),
        (for_one_device, "def f(x):\n    return x.cuda()"),
        (for_one_device, "def f(x):\n    return x.to('cuda:1')"),
        (for_one_device, "def f(x):\n    return torch.zeros(3, device='cuda')"),
    ],
)
def test_what_is_looked_for_is_found(monkeypatch, tmp_path, find, source):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path / "iec")
    (tmp_path / "iec").mkdir()
    path = tmp_path / "iec" / "a.py"
    path.write_text(source)
    [place] = {*find(path)}
    assert place in ("iec.a.f", "iec.a.A.f")
    path.write_text("def f(x, r):\n    return torch.zeros(3, device=x.device) + r.items() + torch.ones_like(x)")
    assert not {*find(path)}
