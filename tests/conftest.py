"""Shared fixtures. Tests run on the CPU, on tiny random or analytic networks, without any download."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from iec.runs.cell import Cell
from iec.runs.config import register
from iec.sampling.network import Prediction

CONFIGS = Path(__file__).parents[1] / "configs"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
"""Of a subprocess that runs a command."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """As in subprocesses and jobs: the bytes hold for one number of threads; and a process with more of them cannot fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def linear_network():
    """eps(x) = m x, whatever the timestep; remembers the steps it was called with."""

    def make(m: float):
        def network(x, step, cond=None, cache=None):
            network.steps.append((step, len(x)))
            return Prediction(m * x)

        network.steps = []
        return network

    return make


@pytest.fixture(scope="session")
def make_cell():
    """A checked cell on the CPU from overrides, as ``run.py`` makes it."""
    register()

    def make(*overrides):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return Cell.from_config(compose("config", overrides=["device=cpu", *overrides]))

    return make
