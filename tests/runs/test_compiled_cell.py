"""``model.compile=true``: a cell of its own, compiled before it samples, and refused where it cannot be."""

import logging
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from iec.efficiency.compiled import compiled
from iec.efficiency.engine.technique import Engine
from iec.efficiency.technique import Prepared, Technique
from iec.errors import ConfigError
from iec.models.cards import card
from iec.models.unet import UNetNetwork
from iec.runs.compiling import compiled_network, first_steps
from iec.runs.runner import run_cell
from iec.sampling.network import Step
from tests.efficiency.test_compiled import PLAIN, SHAPE, Backend, Line, X

COMPILE = "model.compile=true"


@pytest.mark.parametrize("key", ["compile", "channels_last"])
def test_it_is_another_cell_only_when_it_is_asked_for(make_cell, key):
    plain, other = make_cell(), make_cell(f"model.{key}=true")
    assert make_cell(f"model.{key}=false").identity == plain.identity
    assert other.slug != plain.slug


def test_calibrations_are_shared_with_the_cell_that_is_not_compiled(make_cell):
    assert make_cell(COMPILE).model.identity == make_cell().model.identity
    assert "-w8a8-compiled-" in make_cell(COMPILE, "efficiency=w8a8").slug


@pytest.mark.parametrize(
    ("overrides", "way_out"),
    [
        (["efficiency=w8a8", "efficiency.kernels=int8"], "efficiency.kernels=simulated"),
        (["efficiency=cachequant_w8a8", "efficiency.kernels=int8_unfused"], "efficiency.kernels=simulated"),
        (["efficiency=deepcache", "efficiency.schedule=adaptive", "efficiency.threshold=0.3"], "efficiency.schedule=uniform"),
        (["model=ideal_fashion"], "model=ddim_cifar_small"),
        (["corrector=timeshift"], "another corrector"),
    ],
)
def test_what_has_no_static_graphs_is_refused_before_anything_is_loaded(make_cell, overrides, way_out):
    with pytest.raises(ConfigError, match="model.compile=true") as caught:
        make_cell(COMPILE, *overrides)
    assert way_out in str(caught.value) and "model.compile=false" in str(caught.value)
    make_cell("model.compile=false", *overrides)
    if "=" in way_out:
        key = way_out.split("=")[0]
        kept = [word for word in overrides if not word.startswith((f"{key}=", "efficiency.threshold"))]
        assert make_cell(COMPILE, *kept, way_out).compile


@dataclass(frozen=True)
class Own(Technique):
    def prepare(self, model, table, artifacts):
        return Prepared(UNetNetwork(Line()))


class Compiling(Own):
    def require_compiles(self):
        pass


def test_a_technique_of_ones_own_says_that_it_compiles():
    with pytest.raises(ConfigError, match=r"override `Technique\.require_compiles`"):
        Own().require_compiles()
    Compiling().require_compiles()
    eager = Compiling().prepare(None, None, None).network
    with torch.no_grad():
        assert torch.equal(compiled(eager, Backend())(X, Step(0, 5)).eps, eager(X, Step(0, 5)).eps)


def test_an_engine_is_refused():
    with pytest.raises(ConfigError, match=r"onnxruntime.*model\.compile=false"):
        Engine(file="network.onnx").require_compiles()


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], [(0, "full")]),
        (["efficiency=deepcache", "efficiency.interval=3"], [(0, "full"), (1, "cached")]),
        (["efficiency=deepcache", "efficiency.schedule=explicit", "efficiency.steps=[0,1,2,9]"], [(2, "full"), (3, "cached")]),
        (["efficiency=deepcache", "efficiency.interval=1"], [(0, "full")]),
    ],
)
def test_first_calls_are_one_of_each_mode(make_cell, overrides, steps):
    assert [(step.index, step.mode) for step in first_steps(make_cell(*overrides).sampler)] == steps


@pytest.fixture
def small_model(monkeypatch):
    """``ddim_cifar_small`` with few layers."""
    full = card("ddim_cifar_small")
    unet = full.components["unet"]
    config = {**unet.config, **PLAIN, "up_block_types": ("UpBlock2D",), "norm_num_groups": 4, "sample_size": 8}
    small = replace(full, components={"unet": replace(unet, config=config)}, shape=SHAPE, resolution=8, packaged=None, cut="latent")
    monkeypatch.setattr("iec.models.source.card", lambda name: small)


def test_what_torch_cannot_compile_is_refused(make_cell, small_model, monkeypatch, tmp_path):
    def backend(graph, inputs):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("iec.runs.compiling.compiled", partial(compiled, backend=backend))
    cell = make_cell("model.random_weights=true", f"paths.artifacts={tmp_path}", "batch_size=2")
    with pytest.raises(ConfigError, match=r"cannot compile .*no kernel.*model\.compile=false"):
        compiled_network(cell, cell.model.load("cpu"), UNetNetwork(Line()), cell.sampler)


def test_a_cell_is_compiled_before_it_samples_and_has_the_images_of_its_graphs(
    make_cell, small_model, monkeypatch, tmp_path, caplog
):
    backend = Backend()
    monkeypatch.setattr("iec.runs.compiling.compiled", partial(compiled, backend=backend))
    caplog.set_level(logging.INFO, "iec")
    common = ["model.random_weights=true", "efficiency=deepcache", "iec=all_steps", "sampler.steps=4", "num_images=3",
              "batch_size=2", "processes=1", "metrics=none", "efficiency.interval=2", f"paths.output={tmp_path}",
              f"paths.artifacts={tmp_path}/a"]  # fmt: skip
    images = run_cell(make_cell(COMPILE, *common)).first_images(3)
    assert backend.graphs == 2
    assert any("compiling deepcache: 2/2" in message for message in caplog.messages)
    assert np.array_equal(images, run_cell(make_cell(*common)).first_images(3))
