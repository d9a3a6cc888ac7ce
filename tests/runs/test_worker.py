"""The processes that share a cell on one machine: bytes, kills, failures, threads, features."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import iec.runs.sampling
from iec.io.cores import intra_op_threads
from iec.io.workers import WorkerError
from iec.metrics.protocol import protocol
from iec.runs.batches import Samples
from iec.runs.failures import read_failure
from iec.runs.features import FEATURES, features_of
from iec.runs.runner import run_cell
from iec.runs.store import Store
from iec.sampling.network import Calls
from tests.conftest import ENV
from tests.io.test_workers import wait_until_gone
from tests.runs.pausing import OVERRIDES, PAUSE
from tests.runs.test_parallel import CELL, SCORED, files

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pausing_images(tmp_path_factory, make_cell):
    """The files of the cell with the technique `Pausing`, as one process makes it that does not pause."""
    return files(run_cell(make_cell(*CELL, *OVERRIDES, f"paths.output={tmp_path_factory.mktemp('whole')}")).cell.folder)


@pytest.mark.parametrize(("processes", "finished"), [(2, 2), (3, 3)])
def test_processes_make_the_bytes_of_one_with_a_kill_in_between(
    pausing_images, tmp_path, make_cell, monkeypatch, caplog, processes, finished
):
    """Two or three processes of which one is killed, then as many, which go on: each had finished its first micro-batch."""
    caplog.set_level("INFO")
    (tmp_path / "pids").mkdir()
    cell = make_cell(*CELL, *OVERRIDES, f"paths.output={tmp_path}", f"processes={processes}")

    def kill_when_two_wait():
        while len(pids := [path.name for path in (tmp_path / "pids").iterdir()]) < 2 or shards() < finished:
            time.sleep(0.01)
        os.kill(int(pids[0]), signal.SIGKILL)

    def shards():
        return len(list(cell.folder.glob("shards/*.json")))

    with monkeypatch.context() as patch:
        patch.setenv(PAUSE, str(tmp_path / "pids"))
        killer = threading.Thread(target=kill_when_two_wait)
        killer.start()
        with pytest.raises(WorkerError, match=r"^cpu, process [01] was killed by SIGKILL\. What is finished is kept"):
            run_cell(cell)
        killer.join()
    assert shards() == finished and "SIGKILL" in read_failure(cell.folder).reason
    wait_until_gone(tmp_path / "pids")
    run_cell(cell)
    assert f"{5 - finished} of 5 micro-batches to sample" in caplog.text
    steps = 2 * (5 - finished)
    assert f"sampling pausing: {steps}/{steps}" in caplog.text  # one count over all of them
    assert files(cell.folder) == pausing_images and read_failure(cell.folder) is None


def test_an_interrupted_command_ends_its_processes_and_another_number_goes_on(pausing_images, tmp_path, make_cell):
    (tmp_path / "pids").mkdir()
    program = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'run.py'; "
    program += "runpy.run_path('run.py', run_name='__main__')"  # a shell's background jobs, the tests among them, ignore SIGINT
    overrides = [*CELL, *OVERRIDES, f"paths.output={tmp_path}", "device=cpu"]
    command = [sys.executable, "-c", program, *overrides, "processes=2"]
    environment = {**ENV, "PYTHONPATH": str(ROOT), PAUSE: str(tmp_path / "pids")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "pids").iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "goes on from there" in process.communicate(timeout=60)[1] and process.returncode == 130
    wait_until_gone(tmp_path / "pids")
    assert len(list(tmp_path.glob("*/shards/*.json"))) == 2
    assert files(run_cell(make_cell(*overrides, "processes=1")).cell.folder) == pausing_images


def test_two_processes_extract_the_features_of_one(tmp_path, make_cell):
    """51 images: two batches of the extractors, two of which cost one pass. Nothing is sampled."""
    protocols = ("efficientnet_lite0", "efficientnet_lite0_deep")
    images = np.random.default_rng(0).integers(0, 256, (51, 32, 32, 3), np.uint8)
    found = []
    for processes in (1, 2):
        overrides = ["num_images=51", "batch_size=51", "trace_images=0", f"paths.output={tmp_path / str(processes)}"]
        cell = make_cell(*CELL, *SCORED, *overrides, f"processes={processes}")
        store = Store.open(cell.folder, cell.identity)
        store.write(cell.batches[0], Samples(images, np.zeros((3, 0, 3, 32, 32), np.float32), Calls(), 1.0), 51, "none")
        with intra_op_threads(1):
            found.append(features_of(cell, store, {name: protocol(name).extractor(cell.device) for name in protocols}))
    for name in protocols:
        one, two = (features[name] for features in found)
        assert len(two) == 51 and two.extractor == one.extractor
        assert all(np.array_equal(getattr(one, kind), getattr(two, kind)) for kind in FEATURES)


def test_an_error_in_a_process_is_the_error_of_the_cell(tmp_path, make_cell):
    cell = make_cell(*CELL, f"paths.output={tmp_path}", "processes=2", "efficiency._target_=tests.runs.pausing.Failing")
    with pytest.raises(WorkerError, match=r"^cpu, process [01] failed: ArtifactError: no calibration\nWhat is finished"):
        run_cell(cell)
    assert "ArtifactError: no calibration" in read_failure(cell.folder).reason


def test_the_bytes_are_those_of_one_thread_whatever_the_number_of_cores(pausing_images, tmp_path, make_cell, monkeypatch):
    """And the setting is as before afterwards."""
    numbers = []
    sample = iec.runs.sampling.sample_batch
    monkeypatch.setattr(
        iec.runs.sampling, "sample_batch", lambda *arguments: numbers.append(torch.get_num_threads()) or sample(*arguments)
    )
    for asked, threads in [([], 1), (["threads=3"], 3)]:
        with intra_op_threads(2):
            cell = make_cell(*CELL, *OVERRIDES, *asked, f"paths.output={tmp_path}")
            run_cell(cell)
            assert torch.get_num_threads() == 2
        assert set(numbers) == {threads}
        numbers.clear()
        assert (files(cell.folder) == pausing_images) == (threads == 1)
        assert cell.identity.get("threads", 1) == threads
        assert (cell.artifacts == cell.paths.artifacts) == (threads == 1)
