"""Compute one cell, or many with -m.

    python run.py model=ddim_cifar_small efficiency=w4a8 iec=all_steps
    python run.py efficiency=w8a8 iec=all_steps iec.lambda=0.3 num_images=512
    python run.py -m efficiency=w8a8,w4a8 iec=none,all_steps
    python run.py devices=4                                          # on 4 GPUs of this machine
    python run.py processes=4                                        # on 4 cores of a CPU; the default is all
    python run.py -m hydra/launcher=slurm shards=8 'shard=range(8)'  # in 8 jobs of a cluster

What is finished is kept under the cell's hash; the same command goes on where it stopped. `python run.py --help` lists the options.
"""

import os

# Idle OpenMP threads of libgomp spin only briefly before they sleep: endless spinning, its default, makes small networks 10 times
# slower whenever the cores are shared. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from iec.runs.run import command

if __name__ == "__main__":
    command()
