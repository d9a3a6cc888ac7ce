"""Compute one cell, or many with -m.

    python run.py model=ddim_cifar_small efficiency=w4a8 iec=all_steps
    python run.py efficiency=w8a8 iec=all_steps iec.lambda=0.3 num_images=512
    python run.py -m efficiency=w8a8,w4a8 iec=none,all_steps

What is finished is kept under the cell's hash; the same command goes on where it stopped. `python run.py --help` lists the options.
"""

import os

# Idle OpenMP threads of libgomp spin only briefly before they sleep: endless spinning, its default, makes small networks 10 times
# slower whenever the cores are shared. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import hydra
from omegaconf import DictConfig

from iec.config import register
from iec.runner import run_from_config
from iec.runtime import entry_point, keep_freed_memory

register()


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> float | None:
    """One cell; returns its first score, so that sweepers can optimise it."""
    with entry_point():
        return run_from_config(config)


if __name__ == "__main__":
    keep_freed_memory()
    main()
