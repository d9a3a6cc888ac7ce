"""Networks whose Jacobians and errors have closed forms."""

import numpy as np
import pytest
import torch

from iec.analysis.setup import Setup
from iec.sampling.ddim import Sampler
from iec.sampling.network import Prediction
from iec.sampling.timetable import NoiseSchedule, Timetable

SHAPE = (1, 2, 3)
D = int(np.prod(SHAPE))
SCHEDULE = NoiseSchedule()


def covariance():
    """Of the Gaussian data; not diagonal."""
    m = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return m @ m.T / D + 0.05 * torch.eye(D, dtype=torch.float64)


def jacobian(t):
    """J of the exact eps of N(0, covariance): sqrt(1 - a) (a Sigma + (1 - a) I)^-1."""
    a = SCHEDULE.at(t)
    return (1 - a) ** 0.5 * torch.linalg.inv(a * covariance() + (1 - a) * torch.eye(D, dtype=torch.float64))


def apply(matrix, x):
    return (x.flatten(1) @ matrix.T).view_as(x)


def exact(x, step, cond=None, cache=None):
    """The exact eps of Gaussian data."""
    return Prediction(apply(jacobian(step.timestep), x))


def injected(i):
    """The error that `disturbed` adds to eps at step i, [D]."""
    return torch.linspace(-1, 1, D, dtype=torch.float64) * 0.01 * (i + 1)


def disturbed(x, step, cond=None, cache=None):
    return Prediction(exact(x, step).eps + injected(step.index).view(SHAPE))


@pytest.fixture
def table():
    return Timetable.spaced("uniform", 10, SCHEDULE)


@pytest.fixture
def make_setup(table):
    def make(network=disturbed, **options):
        return Setup(exact, network, Sampler(options.pop("timetable", table), **options), SHAPE)

    return make
