"""Sweeps through a real Slurm of this machine alone. Skipped unless `scripts/local_slurm.sh up` has been called."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iec.runs.runner import run_cell

ROOT = Path(__file__).parents[2]
CELL = ["model.random_weights=true", "sampler.steps=2", "num_images=8", "batch_size=2", "metrics=none"]
SECONDS = 240.0


def reason_to_skip():
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return "there is no Slurm here; scripts/local_slurm.sh up installs and starts one"
    answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode:
        return "Slurm does not answer; scripts/local_slurm.sh up starts it"
    names = [line.split()[-1] for line in answer.stdout.splitlines() if line.startswith("ClusterName")]
    return None if names == ["local"] else f"this is the cluster {names}, and not that of scripts/local_slurm.sh"


pytestmark = [pytest.mark.skipif(bool(REASON := reason_to_skip()), reason=str(REASON)), pytest.mark.usefixtures("one_thread")]


class Sweep:
    """``run.py -m hydra/launcher=slurm`` with its jobs; all are gone at the end of the block."""

    def __init__(self, output, *overrides):
        command = [sys.executable, "run.py", "-m", "hydra/launcher=slurm", *CELL, "device=cpu", f"paths.output={output}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "SLURM_"))}
        self.output, self.log = output, output / "launcher.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, *overrides], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for job in self.output.glob(".submitit/*/*_submission.sh"):
            subprocess.run(["scancel", job.parent.name], timeout=60, check=False)

    def wait(self, look=lambda: None):
        """Until it ends, looking at it meanwhile."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            look()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)
        assert self.process.returncode == 0, self.text()

    def job(self, number):
        """The id of a job that has been submitted, e.g. 7_0; None before."""
        found = list(self.output.glob(f".submitit/*_{number}"))
        return found[0].name if found else None

    def job_log(self, number):
        job = self.job(number)
        return (self.output / ".submitit" / job / f"{job}_0_log.out").read_text()

    def text(self):
        logs = sorted(self.output.glob(".submitit/*/*_log.*"))
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in [self.log, *logs])


def shards(output):
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.glob("*/shards/*.npz"))}


def test_a_sweep_over_lambda_and_placement(tmp_path, make_cell):
    one, many = tmp_path / "one", tmp_path / "many"
    many.mkdir()
    rows = [("iec=all_steps", "iec.lambda=0.3"), ("iec=first_step", "iec.lambda=0.3")]
    for row in rows:
        run_cell(make_cell(*CELL, *row, f"paths.output={one}"))
    with Sweep(many, "iec=all_steps,first_step", "iec.lambda=0.3") as sweep:
        sweep.wait()
        assert shards(many) == shards(one) and len(shards(one)) == 8, sweep.text()
        script = next(many.glob(".submitit/*/*_submission.sh")).read_text()
    assert "#SBATCH --array=0-1%2" in script and "#SBATCH --requeue" in script and "#SBATCH --time=240" in script
    assert len(list(many.glob("*/manifest.json"))) == 2


SLOW = """
import os, time
from dataclasses import dataclass
import iec

@dataclass(frozen=True)
class Slow(iec.Technique):
    def prepare(self, model, table, artifacts):
        first_try = os.environ.get("SLURM_ARRAY_TASK_ID") in ("0", "1") and "SLURM_RESTART_COUNT" not in os.environ

        def network(x, step, cond=None, cache=None):
            time.sleep(0.8 if first_try else 0)
            return model.network(x, step, cond, cache)

        return iec.Prepared(network)
"""


def test_shards_that_are_timed_out_and_killed_end_with_the_bytes_of_one_process(tmp_path, make_cell, monkeypatch):
    """Job 0 gets the signal of a timeout, and job 1 is killed and queued again, as in a preemption; job 2 is left alone.

    Each after the first of its 6 micro-batches; until then the network is slow, because Slurm waits 5 seconds before it kills.
    """
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = ["num_images=36", "efficiency._target_=slow.Slow", "efficiency.name=slow"]
    whole = run_cell(make_cell(*CELL, *own, f"paths.output={tmp_path / 'one'}"))
    output = tmp_path / "many"
    output.mkdir()
    kills = {0: ["scancel", "--signal=USR2"], 1: ["scontrol", "requeue"]}

    def interfere():
        for number, command in list(kills.items()):
            if (output / whole.cell.folder.name / "shards" / f"{2 * number:06d}-{2 * number + 1:06d}.json").exists():
                subprocess.run([*command, sweep.job(number)], check=True, timeout=60)
                del kills[number]

    with Sweep(output, *own, "shards=3", "shard=range(3)", "hydra.launcher.timeout_min=5") as sweep:
        sweep.wait(interfere)
        assert not kills and shards(output) == shards(tmp_path / "one"), sweep.text()
        for number, starts in enumerate([2, 2, 1]):
            assert sweep.job_log(number).count("of 6 micro-batches to sample") == starts, sweep.text()
        assert "Job has timed out" in sweep.job_log(0) and "(19 remaining timeouts)" in sweep.job_log(0)
    (manifest,) = output.glob("*/manifest.json")
    assert whole.manifest.hash in manifest.read_text()
