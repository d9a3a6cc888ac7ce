from dataclasses import replace

import pytest
import torch
from torch import nn

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.engine.export import export
from iec.efficiency.engine.file import cached_path
from iec.efficiency.technique import Prepared
from iec.models import Model, card
from iec.sampling.timetable import Timetable
from tests.efficiency.caching.unets import CASES

REFRESH = frozenset({0, 2})


def model_of(unet: nn.Module) -> Model:
    """A small UNet as a model, 3 x 8 x 8."""
    small = replace(card("ddim_cifar_small"), shape=(3, 8, 8), packaged=None)
    return Model(small, unet.eval().requires_grad_(False), {"name": small.name, "weights": "random"}, torch.device("cpu"))


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return model_of(CASES["pixel"][0]())


@pytest.fixture(scope="session")
def table():
    small = card("ddim_cifar_small")
    return Timetable.spaced("quad", 4, small.schedule, final=small.final)


@pytest.fixture(scope="session")
def float_bytes(model, table):
    return export(model, Prepared(model.network), table, None, {}, "", "onnxruntime").full


@pytest.fixture(scope="session")
def caching(model, table):
    """The files of a network with a cache."""
    network = CachedUNetNetwork(model.unet, "pixel")
    return export(model, Prepared(network), table, REFRESH, {}, "", "onnxruntime")


@pytest.fixture
def write(tmp_path):
    def write(full, cached=None):
        path = tmp_path / "network.onnx"
        path.write_bytes(full)
        if cached is not None:
            cached_path(path).write_bytes(cached)
        return path

    return write
