"""Shared fixtures. Tests run on the CPU, on tiny random or analytic networks, without any download."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from iec.network import Prediction


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
