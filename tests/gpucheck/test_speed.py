"""Part ``speed``: what is timed, what is skipped, and how times become verdicts. No time of this machine is asserted."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from iec.gpucheck import speed, subject, timing
from iec.gpucheck.part import Bench, Line
from iec.gpucheck.subject import Subject
from iec.gpucheck.timing import Timed, limited, timed
from iec.gpucheck.waits import Watch
from iec.models.architecture import build
from iec.models.cards import card
from iec.models.unet import network_of
from iec.sampling.network import Prediction
from tests.gpucheck.test_fake_cuda import FakeNoise
from tests.gpucheck.test_waits import answer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def full(tmp_path):
    return Bench(CUDA, "full", tmp_path)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is none, whose work takes what ``clock`` says."""
    clock = SimpleNamespace(now=0.0, waits=0)

    def wait(_):
        clock.waits += 1

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_work_is_timed_after_a_warm_up_with_waits_around_it_and_the_median_is_taken(gpu):
    taken = iter((9.0, 1.0, 2.5, 2.0))

    def run():
        gpu.now += next(taken)

    assert timed(run, CUDA) == Timed(2.0, 3.0)
    assert gpu.waits == 2 * 4
    assert next(taken, None) is None


def test_slow_work_is_timed_once(gpu):
    taken = iter((9.0, 5.0))

    def run():
        gpu.now += next(taken)

    assert timed(run, CUDA).seconds == 5.0


def test_a_cuda_graph_is_captured_after_warm_ups_on_another_stream(monkeypatch):
    done = []

    @contextmanager
    def around(what, *_):
        done.append(f"{type(what).__name__} begins")
        yield
        done.append("ends")

    class Stream:
        def wait_stream(self, other):
            done.append("waits")

    class Graph:
        def replay(self):
            return "replayed"

    for name, value in {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, around)
    assert timing.captured(lambda: done.append("run"), CUDA)() == "replayed"
    warm_up = ["waits", "Stream begins", "run", "run", "run", "ends", "waits"]
    assert done == ["device begins", *warm_up, "Graph begins", "run", "ends", "ends"]


def test_a_ratio_has_a_limit_at_full_size_alone(full, tmp_path):
    assert limited(full, "x", 1.05, "").verdict == "ok"
    assert limited(full, "x", 1.2, "").verdict == "over"
    assert limited(Bench(CPU, "toy", tmp_path), "x", 1.2, "").verdict == "note"


def test_a_batch_that_does_not_fit_is_skipped_with_the_reason():
    def lines():
        yield Line.note("first")
        raise torch.OutOfMemoryError("no memory")

    first, skipped = speed.within_memory("sd_coco", lines)
    assert (first.verdict, skipped.verdict) == ("note", "skipped")
    assert "too little memory" in skipped.remark


def test_what_there_is_no_time_for_is_skipped_and_the_part_still_finishes(full, monkeypatch):
    now = iter([0.0, 0.0, 130.0, 130.0, 170.0])
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(now))
    names = ("a", "a, compiled", "b", "c")  # to compile takes more than the 55 s that are left
    monkeypatch.setattr(speed, "measurements", lambda _: {name: lambda n=name: iter([Line.note(n)]) for name in names})
    lines = [*speed.measure(full)]
    assert [line.what for line in lines] == [*names]
    assert [line.verdict for line in lines] == ["note", "skipped", "note", "skipped"]
    assert lines[1].remark == "less than 75 of the part's 185 s were left"


def test_every_architecture_is_timed_at_the_papers_batch(full):
    names = speed.measurements(full).keys()
    assert {*speed.ARCHITECTURES, *(f"{name}, compiled" for name in speed.COMPILED)} <= names
    for name in speed.ARCHITECTURES:
        assert Subject.of(name, full).card == card(name)
        assert len(Subject.of(name, full).indices) == card(name).batch_size


def test_bare_calls_and_the_loop_make_the_same_calls(tmp_path):
    toy = Subject.of(speed.UNCONDITIONAL, Bench(CPU, "toy", tmp_path))
    table, seen = toy.table(speed.STEPS), []

    def network(x, step, cond=None, cache=None):
        seen.append((x.shape, step))
        return Prediction(torch.zeros_like(x))

    toy.calls(network, table)()
    bare = list(seen)
    seen.clear()
    toy.trajectory(network, speed.Sampler(table))()
    assert seen == bare
    assert len(bare) == speed.STEPS


@pytest.fixture
def fake_gpu(monkeypatch, tmp_path):
    """Work on tensors without values, which takes a second and 3 GiB."""

    def timed_once(run, device):
        run()
        return Timed(1.0, 3.0)

    def in_dtype(self, dtype, order):
        """A module of fake tensors is not moved, so it is made anew."""
        torch.set_default_dtype(dtype)
        try:
            return network_of(build(self.card.predictor, device=self.device))
        finally:
            torch.set_default_dtype(torch.float32)

    monkeypatch.setattr(speed, "timed", timed_once)
    monkeypatch.setattr(Subject, "to", in_dtype)
    monkeypatch.setattr(subject, "Noise", lambda seed, indices, shape: FakeNoise(shape))
    monkeypatch.setattr(speed, "captured", lambda run, _: run)
    return Bench(torch.device("cuda", 0), "toy", tmp_path)


@pytest.mark.parametrize("name", speed.ARCHITECTURES)
def test_each_architecture_is_timed_on_a_gpu_in_each_format(name, fake_gpu):
    with FakeTensorMode():
        lines = [*speed.card_lines(fake_gpu, name)]
    assert [line.verdict for line in lines] == ["note"] * 6
    own = card(name)
    whole = own.steps + (own.decoder is not None)
    assert lines[0].value == pytest.approx(2 / whole)  # tiny versions have a batch of 2
    assert (lines[1].value, lines[1].unit) == (3.0, "GiB")
    assert [line.value for line in lines[2:]] == [1.0] * 4
    assert all("3.00 GiB" in line.remark for line in lines if line is not lines[1])


def test_times_beside_calls_and_macs_are_taken_on_a_gpu(fake_gpu):
    with FakeTensorMode(), Watch(answer):
        loop, iec, deepcache = speed.loop_lines(fake_gpu)
    assert (loop.value, iec.value) == (1.0, 0.5)  # all take a second, and IEC makes twice the calls
    assert deepcache.value > 1  # as fewer MACs do
