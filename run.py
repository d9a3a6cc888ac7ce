"""Compute one cell, or many with -m.

    python run.py model=ddim_cifar_small efficiency=w4a8 iec=all_steps
    python run.py efficiency=w8a8 iec=all_steps iec.lambda=0.3 num_images=512
    python run.py -m efficiency=w8a8,w4a8 iec=none,all_steps
    python run.py devices=4                                          # on 4 GPUs of this machine
    python run.py -m hydra/launcher=slurm shards=8 'shard=range(8)'  # in 8 jobs of a cluster

What is finished is kept under the cell's hash; the same command goes on where it stopped. `python run.py --help` lists the options.
"""

import os

# Idle OpenMP threads of libgomp spin only briefly before they sleep: endless spinning, its default, makes small networks 10 times
# slower whenever the cores are shared. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from iec.io.runtime import entry_point, keep_freed_memory
from iec.runs.config import register
from iec.runs.failures import sweep_job
from iec.runs.run import run_from_config

register()


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> float | None:
    """One cell; returns its first score, so that sweepers can optimise it."""
    keep_freed_memory()  # here, because the process of a cluster job comes straight to this function
    with sweep_job() if HydraConfig.get().mode == RunMode.MULTIRUN else entry_point():
        return run_from_config(config)


if __name__ == "__main__":
    with entry_point():
        main()
