"""One cell on many processes: shards, devices, kills, calibrations, failures. The bytes are always those of one process."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import iec.efficiency.prepare
import iec.runs.features
import iec.runs.parallel
import iec.runs.sampling
from iec.errors import ConfigError, DeviceError
from iec.runs.batches import micro_batches
from iec.runs.failures import MemoryLimitError, read_failure
from iec.runs.parallel import Share, Split
from iec.runs.runner import run_cell
from iec.runs.store import Store
from tests.conftest import ENV

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")
FORK = multiprocessing.get_context("fork")
CELL = ["model.random_weights=true", "sampler.steps=2", "num_images=10", "batch_size=2", "metrics=none"]
SCORED = ["metrics=efficientnet_lite0", "metrics.beside=[]", "metrics.bootstrap=0"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, make_cell):
    """The scored cell as one process makes it."""
    return run_cell(make_cell(*CELL, *SCORED, f"paths.output={tmp_path_factory.mktemp('one')}"))


def files(folder):
    """The bytes that do not depend on the clock."""
    names = [*folder.glob("shards/*.npz"), *folder.glob("traces/*.npz"), folder / "grid.png", folder / "cell.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def note_calls(monkeypatch, module, name, path):
    """Every call of ``module.name``, in any process, adds a line to ``path``; returns how many there were."""
    wrapped = getattr(module, name)

    def noting(*arguments, **keywords):
        with path.open("a") as file:
            file.write("call\n")
        return wrapped(*arguments, **keywords)

    monkeypatch.setattr(module, name, noting)
    return lambda: len(path.read_text().split())


def start_all(cells):
    processes = [FORK.Process(target=run_cell, args=(cell,)) for cell in cells]
    for process in processes:
        process.start()
    return processes


def finish_all(processes):
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_shards_are_a_partition():
    batches = micro_batches(23, 2)
    for count in (1, 3, 8, 20):
        parts = [Share(k, count).take(batches) for k in range(count)]
        assert sorted(chain(*parts)) == batches and max(map(len, parts)) - min(map(len, parts)) <= 1
    share = Share(1, 3)
    assert share.missing_shards(batches, [batches[0], batches[4], batches[6]]) == [0, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shards=0"], "shards=0 must be at least 1"),
        (["shards=8"], r"-m 'shard=range\(8\)'"),
        (["shards=8", "shard=8"], r"shard=8 must be in 0 \.\. 7"),
        (["shard=1"], r"shard=1 must be in 0 \.\. 0"),
        (["processes=0"], "processes=0 must be auto or a number"),
    ],
)
def test_impossible_splits_are_refused_before_anything_is_made(tmp_path, make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run_cell(make_cell(*CELL, *overrides, f"paths.output={tmp_path}"))
    assert not list(tmp_path.iterdir())


def split(device, **settings):
    return Split.of(OmegaConf.create({"devices": 1, "processes": "auto", "threads": 1, **settings}), torch.device(device))


def test_devices_are_the_first_ones_of_their_type(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert split("cuda", devices=4).places(9, 1) == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert split("cuda", devices=4, processes=4).places(2, 1) == ("cuda:0", "cuda:1")  # not more than micro-batches
    assert split("cuda:2").places(9, 9999) == ("cuda:2",)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=r"devices=4, but there are 2 of type cuda here\. Use devices=2\.") as caught:
        split("cuda", devices=4)
    assert "Use devices=2." in str(caught.value) and len(split("cuda", devices=2).places(9, 1)) == 2


@pytest.mark.parametrize(
    ("device", "settings", "message", "way_out"),
    [
        ("cuda:1", {"devices": 4}, r"Use device=cuda; CUDA_VISIBLE_DEVICES", None),
        ("cuda", {"processes": 2}, r"one process a device\. Use devices=2\.", {"devices": 2}),
        ("cuda", {"threads": 2}, r"Leave threads unset\.", {}),
        ("cpu", {"devices": 2}, r"a CPU is one device\. Use processes=2\.", {"processes": 2}),
        ("cpu", {"devices": 0}, r"devices=0 must be at least 1", {}),
        ("cpu", {"processes": 0}, r"processes=0 must be auto or a number of at least 1", {"processes": "auto"}),
        ("cpu", {"processes": "many"}, r"processes=many must be auto or a number", {"processes": 1}),
        ("cpu", {"threads": 0}, r"threads=0 must be at least 1", {"threads": 1}),
    ],
)
def test_splits_that_a_device_does_not_take_name_one_that_it_takes(monkeypatch, device, settings, message, way_out):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match=message):
        split(device, **settings)
    if way_out is not None:
        split(device, **way_out)


def test_processes_are_one_a_core_where_each_gets_enough_to_do(monkeypatch):
    monkeypatch.setattr(iec.runs.parallel, "usable_cores", lambda: 8)
    number = [
        len(split("cpu", **settings).places(batches, image_steps))
        for settings, batches, image_steps in [
            ({}, 100, 640),  # one a core
            ({}, 3, 640),  # not more than micro-batches
            ({}, 5, 4),  # a tiny cell
            ({}, 5, 250),  # 1250 images times steps: two get 500 each
            ({}, 1, 10**6),
            ({"threads": 4}, 100, 640),
            ({"threads": 16}, 100, 640),
            ({"processes": 3}, 5, 4),  # as asked for
            ({"processes": 3}, 2, 4),
            ({"processes": 30}, 100, 4),
        ]
    ]
    assert number == [8, 3, 1, 2, 1, 2, 1, 3, 2, 30]


def test_how_it_is_split_is_no_part_of_a_cell(make_cell):
    whole, part = make_cell(*CELL), make_cell(*CELL, "shards=8", "shard=3", "processes=2")
    assert part.identity == whole.identity and part.folder == whole.folder


def test_three_processes_make_what_one_makes_and_score_once(one_process, tmp_path, make_cell, monkeypatch):
    scorings = note_calls(monkeypatch, iec.runs.features, "extract_each", tmp_path / "scorings")
    cells = [make_cell(*CELL, *SCORED, f"paths.output={tmp_path}", "shards=3", f"shard={k}") for k in range(3)]
    assert finish_all(start_all(cells)) == [0, 0, 0]
    folder = cells[0].folder
    assert files(folder) == files(one_process.cell.folder)
    assert json.loads((folder / "manifest.json").read_text())["hash"] == one_process.manifest.hash
    assert (folder / "scores.json").read_bytes() == (one_process.cell.folder / "scores.json").read_bytes()
    assert scorings() == 1
    config = (folder / "config.yaml").read_text()
    assert "shards: 1\n" in config and "shard: null\n" in config and "processes: auto\n" in config
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert finish_all(start_all(cells)) == [0, 0, 0]  # all at the end at the same moment
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before and scorings() == 1


def test_a_shard_that_is_killed_goes_on_and_the_last_one_scores(one_process, tmp_path, make_cell, monkeypatch, caplog):
    caplog.set_level("INFO")
    cells = [make_cell(*CELL, f"paths.output={tmp_path}", "shards=2", f"shard={k}") for k in range(2)]
    sample = iec.runs.sampling.sample_batch

    def stop_at_the_second(model, network, sampler, seed, indices, *rest):
        return signal.pause() if indices[0] == 4 else sample(model, network, sampler, seed, indices, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(iec.runs.sampling, "sample_batch", stop_at_the_second)
        (process,) = start_all([cells[0]])
        while not Store(cells[0].folder).shard((0, 1)).with_suffix(".json").exists():
            time.sleep(0.01)
        process.kill()
        process.join()
    assert run_cell(cells[1]) is None
    assert "shard 1 of 2 is finished, shards [0] are not" in caplog.text and "2 of 5 micro-batches are missing" in caplog.text
    assert not (cells[0].folder / "manifest.json").exists()
    assert run_cell(cells[0]).manifest.hash == one_process.manifest.hash
    assert "2 of 3 micro-batches to sample" in caplog.text
    assert files(cells[0].folder) == files(one_process.cell.folder)


def test_a_calibration_that_several_shards_need_is_made_once(tmp_path, make_cell, monkeypatch):
    calibrations = note_calls(monkeypatch, iec.efficiency.prepare, "calibrate", tmp_path / "calibrations")
    own = [*CELL, "efficiency=w8a8", "efficiency.calibration_images=2", f"paths.output={tmp_path}", "num_images=4"]
    cells = [make_cell(*own, "shards=2", f"shard={k}", iec) for k in range(2) for iec in ("iec=none", "iec=all_steps")]
    assert finish_all(start_all(cells)) == [0] * 4
    assert calibrations() == 1
    assert all((cell.folder / "manifest.json").exists() for cell in cells)


def test_a_failure_is_kept_with_its_reason_until_the_cell_is_finished(tmp_path, make_cell, monkeypatch):
    cell = make_cell(*CELL, f"paths.output={tmp_path}")

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ..")

    with monkeypatch.context() as patch:
        patch.setattr(iec.runs.sampling, "sample_batch", no_memory)
        with pytest.raises(MemoryLimitError, match=r"sampling micro-batches of 2 \(CUDA .* 2.00 GiB\.\)\. Try batch_size=1 "):
            run_cell(cell)
        failure = read_failure(cell.folder)
        assert failure.reason.startswith("MemoryLimitError: Out of memory while sampling") and failure.command and failure.when
        patch.setattr(iec.runs.sampling, "sample_batch", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
        with pytest.raises(RuntimeError, match="a bug"):
            run_cell(cell)
        assert read_failure(cell.folder).reason == "RuntimeError: a bug"
    run_cell(cell)
    assert read_failure(cell.folder) is None


def test_memory_that_the_processor_lacks_is_named_too(make_cell, tmp_path, monkeypatch):
    def too_much(*_):
        torch.empty(2**60)

    monkeypatch.setattr(iec.runs.sampling, "sample_batch", too_much)
    with pytest.raises(MemoryLimitError, match="Try batch_size=1"):
        run_cell(make_cell(*CELL, f"paths.output={tmp_path}"))


def test_a_cell_that_fails_in_a_sweep_does_not_stop_the_others(tmp_path):
    overrides = ["device=cpu", f"paths.output={tmp_path}", "num_images=1", "iec=all_steps", "iec.lambda=-1,0.5", "seed=0,1"]
    command = [sys.executable, "run.py", "-m", *CELL, *overrides]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert text.count("ConfigError: ") == 2 and "At least one cell failed" in text and "Traceback" not in text
    assert len(list(tmp_path.glob("*/manifest.json"))) == 2


def test_a_folder_that_another_process_is_making_is_no_other_cell(tmp_path, make_cell):
    cell = make_cell(*CELL, f"paths.output={tmp_path}")
    cell.folder.mkdir()
    (cell.folder / ".cell.json.x.tmp").touch()
    assert Store.open(cell.folder, cell.identity).folder == cell.folder
