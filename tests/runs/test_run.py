"""The command itself: killed, resumed, doubled, damaged, misused. Tiny cells of the bundled model with random weights."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iec.errors import NonFiniteError, StoreError
from iec.models.cards import FOLDER
from iec.models.weights import WEIGHTS
from iec.runs import sampling
from iec.runs.runner import finished_result, run_cell
from iec.runs.sampling import missing_batches
from iec.runs.store import Store
from tests.conftest import ENV

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")
CELL = [
    "model.random_weights=true",
    "iec=all_steps",
    "sampler.steps=2",
    "num_images=10",
    "batch_size=2",
    "metrics=none",
    "device=cpu",
]


PAUSING = """
import runpy, signal, sys
import iec.runs.sampling as sampling
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
pause_at, sample = int(sys.argv.pop(1)), sampling.sample_batch
def sample_or_pause(model, network, sampler, seed, indices, *rest):
    return signal.pause() if indices[0] == pause_at else sample(model, network, sampler, seed, indices, *rest)
sampling.sample_batch = sample_or_pause
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""
"""run.py, which waits for a signal instead of making the micro-batch that begins with the image of its first argument."""


def start(output, *overrides, program=("run.py",)):
    command = [sys.executable, *program, *CELL, f"paths.output={output}", *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(output, *overrides):
    process = start(output, *overrides)
    out, err = process.communicate(timeout=300)
    return process.returncode, out + err


def shard_hashes(output):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(output).glob("*/shards/*.npz")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    code, text = run(output)
    assert code == 0, text
    hashes = shard_hashes(output)
    assert len(hashes) == 5
    return output, hashes, text


def test_a_cell_leaves_its_config_environment_manifest_and_picture(uninterrupted):
    output, hashes, text = uninterrupted
    (folder,) = [p.parent for p in output.glob("*/cell.json")]
    names = {p.name for p in folder.iterdir()}
    assert {"cell.json", "config.yaml", "environment.json", "manifest.json", "grid.png", "shards", "traces"} <= names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_images"] == 10 and set(manifest["shards"]) == set(hashes)
    assert manifest["calls_per_image"] == {"full": 2, "cached": 0, "correction": 2, "cached_correction": 0, "total": 4}
    assert "network calls per image: full 2" in text
    environment = json.loads((folder / "environment.json").read_text())
    assert {"device", "packages", "revision"} <= set(environment)


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(uninterrupted, tmp_path):
    for shards, kill, code in [(1, signal.SIGKILL, -signal.SIGKILL), (3, signal.SIGINT, 130)]:
        process = start(tmp_path, program=("-c", PAUSING, str(2 * shards)))
        while process.poll() is None and len(list(tmp_path.glob("*/shards/*.json"))) < shards:
            time.sleep(0.005)
        process.send_signal(kill)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == code and ("goes on from there" in err) == (kill == signal.SIGINT), err
        assert len(list(tmp_path.glob("*/shards/*.json"))) == shards and not list(tmp_path.glob("*/manifest.json"))
    code, text = run(tmp_path)
    assert code == 0, text
    assert shard_hashes(tmp_path) == uninterrupted[1]


def test_two_processes_on_one_folder_and_a_damaged_shard(uninterrupted, tmp_path):
    pair = [start(tmp_path), start(tmp_path)]
    assert [p.communicate(timeout=300) and p.returncode for p in pair] == [0, 0]
    assert shard_hashes(tmp_path) == uninterrupted[1]
    victim = sorted(tmp_path.glob("*/shards/*.npz"))[2]
    victim.write_bytes(victim.read_bytes()[:50])
    code, text = run(tmp_path)
    assert code == 0 and "1 of 5 micro-batches to sample" in text
    assert shard_hashes(tmp_path) == uninterrupted[1]


def test_more_images_continue_the_same_cell(uninterrupted, tmp_path, make_cell):
    overrides = [*CELL, f"paths.output={tmp_path}"]
    run_cell(make_cell(*overrides, "num_images=3"))
    cell = make_cell(*overrides)
    assert missing_batches(cell, Store(cell.folder)) == cell.batches[1:]  # the half-kept second shard is made again, whole
    assert finished_result(cell) is None
    result = run_cell(cell)
    assert finished_result(cell).manifest == result.manifest
    assert shard_hashes(tmp_path) == uninterrupted[1]


def test_bad_input_exits_with_its_message_and_no_traceback(tmp_path):
    code, text = run(tmp_path, "iec.lambda=-1")
    assert code == 2 and "ConfigError: iec.lambda" in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_sweep_into_an_output_that_is_no_folder_exits_with_one_line(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    process = start(tmp_path / "gone", program=("run.py", "-m", "seed=0,1"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and err.count("\n") == 1, err
    assert err.startswith("StoreError: ") and "link to nothing" in err and "paths.output=DIR" in err
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


@pytest.mark.parametrize(("option", "name"), [("paths.output", "file/a"), ("paths.artifacts", "file"), ("paths.cell", "file")])
def test_folders_that_cannot_be_used_are_refused_before_anything_is_made(tmp_path, make_cell, option, name):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=rf"is not a folder\. Choose another folder \({option}=DIR\)"):
        run_cell(make_cell(*CELL, f"paths.output={tmp_path}", f"{option}={tmp_path / name}"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_artifacts_folder_that_is_there_may_be_read_only(tmp_path, make_cell, monkeypatch):
    """It may be shared, and have all that is needed; what is missing there is refused when it is to be made."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "shared")  # as for a user who is not root
    make_cell(*CELL, f"paths.output={tmp_path / 'out'}", f"paths.artifacts={tmp_path / 'shared'}").paths.require_usable()
    with pytest.raises(StoreError, match=r"shared cannot be written. Choose another folder \(paths.artifacts=DIR\)"):
        make_cell(*CELL, f"paths.output={tmp_path}", f"paths.artifacts={tmp_path / 'shared' / 'new'}").paths.require_usable()


def test_a_sweep_makes_the_cells_of_single_runs_below_the_home_folder(tmp_path, make_cell, monkeypatch):
    """Two tiny cells of one command, which starts elsewhere and leaves nothing there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cell = [override for override in CELL if not override.startswith("iec=")]
    cell += ["num_images=1", "batch_size=1", "sampler.steps=1", "paths.output='~/out'"]
    command = [sys.executable, ROOT / "run.py", "-m", *cell, "iec=none,all_steps"]
    (tmp_path / "elsewhere").mkdir()
    environment = {**ENV, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "elsewhere").iterdir()) and (tmp_path / "out" / "multirun.yaml").is_file()
    cells = [make_cell(*cell, f"iec={iec}") for iec in ("none", "all_steps")]
    assert {path.parent for path in (tmp_path / "out").glob("*/manifest.json")} == {cell.folder for cell in cells}


def test_a_folder_that_holds_another_cell_is_refused(uninterrupted, make_cell):
    (folder,) = [p.parent for p in uninterrupted[0].glob("*/cell.json")]
    with pytest.raises(StoreError, match="they differ in seed"):
        run_cell(make_cell(*CELL, f"paths.cell={folder}", "seed=1"))


def test_deepcache_counts_its_calls_and_an_interval_of_one_changes_nothing(tmp_path, make_cell):
    def images(*overrides):
        result = run_cell(make_cell(*CELL, *overrides, "num_images=2", "sampler.steps=4", f"paths.output={tmp_path}"))
        return result.first_images(2), result.manifest.calls_per_image

    plain, _ = images()
    every, _ = images("efficiency=deepcache", "efficiency.interval=1")
    cached, calls = images("efficiency=deepcache", "efficiency.interval=2")
    assert (plain == every).all() and not (plain == cached).all()
    assert calls == {"full": 2, "cached": 2, "correction": 2, "cached_correction": 0, "total": 6}


def test_nan_weights_stop_the_run_and_write_nothing(tmp_path, make_cell):
    folder = shutil.copytree(FOLDER / "ddim_cifar_small", tmp_path / "weights")
    state = load_file(folder / WEIGHTS)
    state["conv_out.bias"][0] = float("nan")
    save_file(state, folder / WEIGHTS)
    overrides = [override for override in CELL if "random" not in override]
    with pytest.raises(NonFiniteError, match=r"step 0 \(timestep 800"):
        run_cell(make_cell(*overrides, f"model.weights={folder}", f"paths.output={tmp_path}"))
    assert not list(tmp_path.glob("*/shards/*"))


def test_float32_is_float32_whatever_another_library_allows(make_cell, monkeypatch, tmp_path):
    """TF32 would be another network on a GPU, and another one than that of the scores."""
    places, seen = (torch.backends.cuda.matmul, torch.backends.cudnn.conv), []
    sample = sampling.sample_batch

    def recorded(*args):
        seen.append([place.fp32_precision for place in places])
        return sample(*args)

    monkeypatch.setattr(sampling, "sample_batch", recorded)
    cell = make_cell("sampler.steps=1", "num_images=1", "batch_size=1", "metrics=none", f"paths.output={tmp_path}")
    try:
        torch.set_float32_matmul_precision("medium")
        run_cell(cell)
        assert seen == [["ieee", "ieee"]] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
