"""Part ``sync``: what counts as waiting, and that the loop waits only where it says."""

from collections import Counter
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from iec.gpucheck import waiting
from iec.gpucheck.cells import cell_of
from iec.gpucheck.models import tiny
from iec.gpucheck.part import Bench
from iec.gpucheck.waits import COPIES, REASONS, SYNCHRONISATIONS, VALUES, Watch, counted, profiled
from iec.models.architecture import build
from iec.models.unet import network_of
from iec.runs.sampling import prepare
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.guidance import guided
from iec.sampling.network import Prediction
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.gpucheck.test_fake_cuda import CUDA, FakeNoise, fake_cuda

CPU = torch.device("cpu")
FINITE = "iec.sampling.network.require_finite"
HERE = f"{__name__}.waiting_function"


def waiting_function(wait, x):
    return wait(x)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.numpy(), lambda x: bool(x.any()),
        lambda x: float(x[0]), lambda x: int(x[0]), lambda x: [1, 2][x[0].long()], lambda x: x.nonzero(), lambda x: x.unique(),
        lambda x: x[x > 0], lambda x: torch.equal(x, x), lambda x: torch.tensor([1.0], device=x.device),
    ],
)  # fmt: skip
def test_what_waits_is_found_with_its_place(wait, monkeypatch):
    with Watch() as watch:
        waiting_function(wait, torch.ones(2))
    assert sum(watch.places.values()) >= 1
    assert {place.split(".<lambda>")[0] for place in watch.places} <= {HERE, __name__}
    assert watch.without_reason() == sorted(watch.places)


def test_what_stays_on_the_device_does_not_wait():
    x = torch.ones(2, 3)
    with Watch() as watch:
        y = torch.where(x > 0, x, 0.0) + torch.full((2, 3), 2.0, device=x.device) + x[:, 1:].sum() + x.to(torch.float64)
        y[0] = y.clamp(0, 1).flatten()[0]
    assert not watch.places


def test_a_copy_to_another_device_is_found():
    with FakeTensorMode(), Watch() as watch:
        x = torch.empty(3)
        x.to(CUDA)
        assert sum(watch.places.values()) == 1
        torch.empty(3, device=CUDA).copy_(x)
        assert sum(watch.places.values()) == 2
        torch.empty(3, device=CUDA) * torch.empty((), dtype=torch.float32)  # a number, as torch takes it
        torch.empty(3, device=CUDA).to(torch.float64)
        assert sum(watch.places.values()) == 2


def test_every_place_with_a_reason_is_there():
    for place in REASONS.keys() - {"diffusers.schedulers"}:
        names = place.split(".")
        found = next(k for k in range(len(names), 0, -1) if names[k - 1].islower() and names[k - 1] != names[-1])
        thing = import_module(".".join(names[:found]))
        for name in names[found:]:
            thing = getattr(thing, name)
        assert callable(thing)


@pytest.mark.parametrize(("iterations", "reads_a_step"), [(0, 1), (1, 2), (3, 4 + 2)])
def test_a_correction_asks_whether_all_images_have_converged_only_before_another_one(iterations, reads_a_step):
    """Else IEC with its one correction would wait once more a step, to save nothing."""

    def network(x, step, cond=None, cache=None):
        return Prediction(0.1 * x)

    table = Timetable.spaced("uniform", 4, NoiseSchedule())
    sampler = Sampler(table, Correction(iterations, tolerance=1e-9), Placement("all_steps"))
    with Watch() as watch:
        list(sampler.trajectory(network, Noise(0, (0, 1), (1, 8, 8))))
    assert watch.places[FINITE] == 4 * (1 + iterations)
    assert sum(watch.places.values()) == 4 * reads_a_step
    assert watch.without_reason() == []


def test_the_profilers_events_are_counted_by_kind():
    names = ["cudaStreamSynchronize", "cudaDeviceSynchronize", "Memcpy HtoD (Pageable -> Device)", "Memcpy DtoD (Device -> Device)"]
    assert counted([*names, "cudaStreamSynchronize", "aten::item"]) == {SYNCHRONISATIONS: 2, COPIES: 1}


def test_the_profiler_counts_values_that_are_read():
    with profiled(CPU) as counts:
        torch.ones(2).sum().item()
        bool(torch.ones(2).all())
    assert counts[VALUES] == 2


@pytest.mark.parametrize(("happened", "verdict"), [(10, "ok"), (11, "over")])
def test_a_gpu_may_wait_as_often_as_the_places_explain(tmp_path, monkeypatch, happened, verdict):
    @contextmanager
    def on_a_gpu(device):
        yield Counter({SYNCHRONISATIONS: happened})

    monkeypatch.setattr(waiting, "profiled", on_a_gpu)
    run = lambda: [waiting.Noise(0, (0,), (1,)) and torch.ones(1).item() for _ in range(10)]  # noqa: E731
    unknown, synchronisations, copies = waiting.loop_lines(Bench(CUDA, "full", tmp_path), "x", run)
    assert (unknown.verdict, unknown.value) == ("over", 1)  # this test's place, which has no reason
    assert unknown.remark.startswith(__name__)
    assert (synchronisations.verdict, synchronisations.limit, copies.verdict) == (verdict, 10 / waiting.STEPS, "ok")


def answer(name):
    """Of a fake tensor, which has no values: all is finite, and no image has converged."""
    return {"__bool__": True}.get(name)


@pytest.mark.parametrize("name", ["IEC, K = 3 with a tolerance", "w8a8", "deepcache + affine"])
def test_the_loop_of_a_technique_moves_nothing_off_a_gpu(name, tmp_path, monkeypatch):
    """On fake tensors with a CUDA device, which refuse to mix devices: also copies by ``.to``, which a rehearsal cannot see."""
    cell = cell_of(tmp_path, "device=cpu", "num_images=2", "batch_size=2", "sampler.steps=4", *waiting.CELLS[name])
    prepared, sampler = prepare(cell, cell.model.load("cpu"))
    with FakeTensorMode(), Watch(answer) as watch:
        network = fake_cuda(prepared.network, monkeypatch)
        states = [*fake_cuda(sampler, monkeypatch).trajectory(network, FakeNoise(cell.card.shape), None, CUDA)]
    assert states[-1].device == CUDA
    assert watch.places.keys() - {"iec.sampling.ddim.Sampler._advance"} == {FINITE}


def test_the_loop_under_guidance_moves_nothing_off_a_gpu():
    card = tiny(waiting.GUIDED)
    sampler = Sampler(Timetable.spaced(card.spacing, 3, card.schedule, final=card.final))
    with FakeTensorMode(), torch.no_grad():
        network = guided(network_of(build(card.predictor, device=CUDA)), card.guidance)
        cond = torch.empty(2, 2, *card.tokens, device=CUDA)
        with Watch(answer) as watch:
            states = [*sampler.trajectory(network, FakeNoise(card.shape), cond, CUDA)]
    assert states[-1].device == CUDA
    assert watch.places == {FINITE: 3}


def test_a_step_that_moves_its_table_to_the_gpu_is_found():
    sampler = Sampler(Timetable.spaced("uniform", 3, NoiseSchedule()))
    with FakeTensorMode():
        table = torch.empty(3, 1)

        def network(x, step, cond=None, cache=None):
            return Prediction(x * table[step.index].to(x.device))

        with Watch(answer) as watch:
            list(sampler.trajectory(network, FakeNoise((1, 8, 8)), None, CUDA))
    assert watch.without_reason() == [f"{__name__}.test_a_step_that_moves_its_table_to_the_gpu_is_found"]
