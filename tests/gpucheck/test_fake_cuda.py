"""Networks and solvers on a CUDA device that is none: torch's fake tensors have a device and a shape, and refuse to mix devices.

What is found: a tensor that is made on the CPU, or left there, and then meets one of the device.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from iec.efficiency.integer.products import PatchMatmul
from iec.gpucheck.cells import cell_of
from iec.gpucheck.models import ARCHITECTURES, tiny
from iec.gpucheck.option_list import options
from iec.models.architecture import build
from iec.models.unet import network_of
from iec.runs.sampling import prepare
from iec.sampling.network import Prediction, Step

OPTIONS = (
    "w8a8, int8 kernels",
    "cachequant_w8a8, forecast taylor",
    "deepcache, forecast hicache",
    "IEC, eta = 1",
    "corrector=affine",
    "corrector=unic",
)
CUDA = torch.device("cuda", 0)


class FakeNoise:
    """Noise without numbers."""

    def __init__(self, shape):
        self.shape = shape

    def initial(self, dtype=torch.float64, device="cpu"):
        return torch.empty(2, *self.shape, dtype=dtype, device=device)

    def of_step(self, i, dtype=torch.float64, device="cpu"):
        return self.initial(dtype, device)


def fake_cuda(anything, monkeypatch):
    """A deep copy whose tensors are fake ones on a GPU."""

    def tensor(self, memo):
        return memo.setdefault(id(self), torch.empty(self.shape, dtype=self.dtype, device=CUDA))

    def parameter(self, memo):
        return memo.setdefault(id(self), nn.Parameter(tensor(self, {}), requires_grad=False))

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", tensor)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", parameter)
    return copy.deepcopy(anything)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_answers_on_the_device_of_its_inputs(name):
    card = tiny(name)
    with FakeTensorMode(), torch.no_grad():
        x, cond = torch.empty(2, *card.shape, device=CUDA), None
        if card.tokens is not None:
            cond = torch.empty(2, *card.tokens, device=CUDA)
        if card.takes_labels:
            cond = torch.zeros(2, dtype=torch.int64, device=CUDA)
        eps = network_of(build(card.predictor, device=CUDA))(x, Step(0, 500), cond).eps
        assert (eps.device, eps.shape) == (CUDA, x.shape)
        if card.decoder is not None:
            assert build(card.decoder, device=CUDA).decode(x).sample.device == CUDA


@pytest.mark.parametrize("name", OPTIONS)
def test_a_prepared_network_and_its_sampler_stay_on_the_device(name, tmp_path, monkeypatch):
    [option] = [option for option in options("full") if option.name == name]
    monkeypatch.setattr("iec.efficiency.integer.network._product", lambda _: PatchMatmul)  # a GPU's
    cell = cell_of(tmp_path, "device=cpu", "num_images=2", "batch_size=2", "sampler.steps=4", *option.overrides)
    prepared, sampler = prepare(cell, cell.model.load("cpu"))
    monkeypatch.setattr(FakeTensor, "__bool__", lambda _: True, raising=False)  # what the loop asks: whether all is finite
    with FakeTensorMode():
        network = fake_cuda(prepared.network, monkeypatch)
        states = [*fake_cuda(sampler, monkeypatch).trajectory(network, FakeNoise(cell.card.shape), None, CUDA)]
    assert [state.device for state in states] == [CUDA] * 5
    assert states[-1].shape == (2, *cell.card.shape)


def test_a_tensor_that_is_left_on_the_cpu_is_found(tmp_path):
    sampler = cell_of(tmp_path, "device=cpu", "sampler.steps=4").sampler

    def network(x, step, cond=None, cache=None):
        return Prediction(x * torch.ones(x.shape))

    with FakeTensorMode(), pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        list(sampler.trajectory(network, FakeNoise((1, 8, 8)), None, CUDA))
