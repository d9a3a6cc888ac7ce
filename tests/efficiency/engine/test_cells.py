"""Exported files in cells: beside the cell that was exported, and refused where they do not belong."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from iec.efficiency.engine.__main__ import _stored as stored
from iec.efficiency.engine.__main__ import main
from iec.errors import ArtifactError, ConfigError, MismatchError, StoreError
from iec.io.files import canonical_hash
from iec.runs.runner import run_cell
from tests.conftest import ENV
from tests.models.tiny import tiny
from tests.test_docs import the_program

SMALL = [
    *("model=ddim_fashion_small", "sampler.steps=5", "num_images=3", "batch_size=3", "trace_images=3"),
    *("metrics=none", "processes=1"),
]
QUICK = ["efficiency.calibration_images=2", "efficiency.scale_rule=max"]
CACHEQUANT = ["efficiency=cachequant_w8a8", "efficiency.interval=2", "efficiency.dec_images=2", *QUICK]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def file(folder):
    """Of the model in float."""
    path = folder / "float.onnx"
    main([str(path), *SMALL, f"paths.output={folder}"])
    return path


@pytest.fixture
def cell(make_cell, folder):
    return lambda *overrides: make_cell(*SMALL, f"paths.output={folder}", f"paths.artifacts={folder}/artifacts", *overrides)


def engine(path, *overrides):
    return ["efficiency=engine", f"efficiency.file={path}", *overrides]


def test_the_corrected_trajectories_of_a_float_file_are_the_networks(cell, file):
    ours, theirs = (run_cell(cell("iec=all_steps", *which)) for which in ([], engine(file)))
    assert np.abs(ours.states() - theirs.states()).max() < 1e-4
    assert theirs.manifest.calls_per_image == ours.manifest.calls_per_image and theirs.cost == ours.cost
    assert theirs.cell.technique.arithmetic == "onnxruntime"


def test_a_user_without_this_package_gets_the_same_images(cell, file, tmp_path):
    """The page's program, in a process that has numpy and ONNX Runtime alone."""
    states = run_cell(cell("iec=all_steps")).states()
    shutil.copy(file, tmp_path / "network.onnx")
    np.save(tmp_path / "noise.npy", states[0])
    program = the_program("engine_user.py")
    assert len(program.splitlines()) <= 32
    (tmp_path / "user.py").write_text(f"{program}\nimport sys\nassert not {{'torch', 'iec', 'onnx'}} & set(sys.modules)\n")
    subprocess.run([sys.executable, "user.py"], cwd=tmp_path, env={**ENV, "PYTHONPATH": ""}, check=True)
    assert np.abs(np.load(tmp_path / "images.npy") - states[-1]).max() < 1e-4


def test_a_caching_quantized_cell_goes_through_two_files(cell, folder, tmp_path):
    """From the folder of the cell; its images are as close to the simulation's as those of the integer kernels."""
    fewer = ["model=ddim_cifar_small", "num_images=2", "batch_size=2"]
    simulated = run_cell(cell(*fewer, *CACHEQUANT))
    path = tmp_path / "network.onnx"
    main([str(simulated.cell.folder), str(path)])
    exported = run_cell(cell(*fewer, *engine(path)))
    assert exported.cell.sampler.refresh == simulated.cell.sampler.refresh == {0, 2, 4}
    assert exported.manifest.calls_per_image == simulated.manifest.calls_per_image
    assert "-engine-int8-" in exported.cell.slug and exported.cell.technique.arithmetic == "int8 onnxruntime"
    difference = exported.first_images(2).astype(float) - simulated.first_images(2)
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 35
    about = json.loads(onnx.load(path).metadata_props[0].value)
    assert about["cell"] == canonical_hash(simulated.cell.identity)
    assert about["technique"]["technique"] == "cachequant" and about["model"]["name"] == "ddim_cifar_small"
    with pytest.raises(MismatchError, match=r"cached_steps=full.*Use iec.cached_steps=cached"):
        cell(*fewer, "iec=all_steps", "iec.cached_steps=full", *engine(path))
    assert cell(*fewer, "iec=all_steps", "iec.cached_steps=cached", *engine(path)).sampler.corrected == set(range(5))
    with pytest.raises(MismatchError, match="efficiency.runtime=onnxruntime, or export it with --engine openvino"):
        cell(*fewer, *engine(path, "efficiency.runtime=openvino"))


def test_guidance_goes_around_a_file(make_cell, monkeypatch, tmp_path):
    """Of a latent, conditional model with a cache: both branches of an image are one batch of the file."""
    monkeypatch.setattr("iec.models.source.card", tiny)
    own = ["model=ldm_imagenet", "model.random_weights=true", "sampler.steps=2", "num_images=1", "batch_size=1", "metrics=none"]
    own += ["iec=all_steps", f"paths.output={tmp_path}", "processes=1"]
    caching = ["efficiency=deepcache", "efficiency.interval=2"]
    main([f"{tmp_path}/network.onnx", *own, *caching])
    ours, theirs = (run_cell(make_cell(*own, *which)) for which in (caching, engine(tmp_path / "network.onnx")))
    assert ours.cell.model.guidance == 1.5 and ours.manifest.calls_per_image == theirs.manifest.calls_per_image
    assert np.abs(ours.states() - theirs.states()).max() < 1e-3 * np.abs(ours.states()).max()


def test_a_cell_is_told_by_the_files_bytes_and_goes_on_where_it_was(cell, file, tmp_path):
    copy = shutil.copy(file, tmp_path / "copy.onnx")
    first, moved = cell("seed=1", *engine(file)), cell("seed=1", *engine(copy))
    assert first.identity == moved.identity and first.folder == moved.folder
    assert first.identity != cell("seed=1", *engine(file, "efficiency.runtime=openvino")).identity
    whole = run_cell(first).manifest.hash
    (first.folder / "shards" / "000000-000002.npz").unlink()
    assert run_cell(moved).manifest.hash == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=ddim_cifar_small"], "network of ddim_fashion_small.*Use model=ddim_fashion_small"),
        (["sampler.steps=4"], r"timesteps \[800, 450, 200, 50, 0\].*samples 4 steps.*sampler.timesteps=\[800,450,200,50,0\]"),
        (["sampler.spacing=uniform"], r"exported for the timesteps \[800, 450, 200, 50, 0\], and the cell samples \[800, 600"),
        (["iec=heun"], "iec=heun, corrector=timeshift and"),
        (["corrector=timeshift"], "iec=heun, corrector=timeshift and"),
        (["corrector=stepback"], "and corrector=stepback do"),
        (["efficiency.runtime=tensorrt"], "choose onnxruntime, openvino"),
    ],
)  # fmt: skip
def test_a_file_where_it_does_not_belong_is_refused_before_sampling(cell, file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        cell(*engine(file), *overrides)


def test_the_ways_out_work(cell, file):
    assert cell(*engine(file), "sampler.steps=null", "sampler.timesteps=[800,450,200,50,0]").sampler.refresh is None
    assert cell(*engine(file), "corrector=unic", "iec=all_steps").slug


def test_a_file_of_other_weights_is_refused_before_sampling(cell, file):
    other = cell(*engine(file), "model.random_weights=true")
    with pytest.raises(ArtifactError, match="network of other weights"):
        run_cell(other)


def test_an_engine_that_is_not_there_is_refused(cell, file, monkeypatch):
    monkeypatch.setattr("iec.efficiency.engine.sessions.find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(ConfigError, match="Or use efficiency.runtime=onnxruntime"):
        cell(*engine(file, "efficiency.runtime=openvino"))
    assert cell(*engine(file)).slug


def test_a_file_is_asked_for(cell):
    with pytest.raises(ConfigError, match="needs efficiency.file=FILE"):
        cell("efficiency=engine")


def test_openvino_runs_a_float_file(cell, file):
    pytest.importorskip("openvino")
    ours, theirs = (run_cell(cell(*which)) for which in ([], engine(file, "efficiency.runtime=openvino")))
    assert np.abs(ours.states() - theirs.states()).max() < 1e-4


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["{folder}", "{folder}/out.onnx"], ConfigError, "no folder of a cell"),
        (["{folder}"], StoreError, "is a folder, not a file"),
        (["{folder}/out.onnx", "efficiency=error_gain"], ConfigError, "cannot be exported: only a UNet can"),
        (["{folder}/out.onnx", "efficiency=w8a8", "efficiency.kernels=int8_unfused", *QUICK], ConfigError, "kernels=simulated"),
        (["{folder}/out.onnx", "model.dtype=bfloat16"], ConfigError, "model.dtype=float32"),
        (["{folder}", "{folder}/out.onnx", "seed=1"], SystemExit, "2"),
        (["seed=1"], SystemExit, "2"),
    ],
)
def test_what_cannot_be_exported_is_refused(folder, tmp_path, words, error, message):
    own = [*SMALL, f"paths.output={tmp_path}"] if len([w for w in words if "=" not in w]) == 1 and error is not SystemExit else []
    with pytest.raises(error, match=message):
        main([*(word.format(folder=tmp_path) for word in words[:1]), *own, *(word.format(folder=tmp_path) for word in words[1:])])
    assert not (tmp_path / "out.onnx").exists()


def test_threads_of_the_cell_are_the_engines(cell, file, monkeypatch):
    from iec.efficiency.engine import network

    given = []
    opened = network.open_session
    monkeypatch.setattr(network, "open_session", lambda *args: given.append(args[-1]) or opened(*args))
    run_cell(cell("seed=2", "threads=2", "num_images=1", "batch_size=1", *engine(file)))
    assert given == [2] and torch.get_num_threads() == 1


def test_a_cell_of_a_machine_with_a_gpu_is_exported_on_the_cpu(cell, tmp_path):
    """Its folder says device=auto, which is the GPU there."""
    (tmp_path / "config.yaml").write_text("device: auto\nsampler: {steps: 3}\n")
    assert stored(tmp_path).device == "cpu"


def test_a_bad_override_and_an_absent_engine_are_refused_in_the_words_of_the_command(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="efficiency.runtime"):
        main([str(tmp_path / "x.onnx"), "efficiency.runtime=onnxruntime"])
    monkeypatch.setattr("iec.efficiency.engine.sessions.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install openvino. Or use --engine onnxruntime"):
        main([str(tmp_path / "x.onnx"), "--engine", "openvino"])
