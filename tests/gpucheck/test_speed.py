"""Part ``speed``: what is timed, what is skipped, and how times become verdicts. No time of this machine is asserted."""

from types import SimpleNamespace

import pytest
import torch

from iec.gpucheck import speed, timing
from iec.gpucheck.part import Bench, Line
from iec.gpucheck.subject import Subject
from iec.gpucheck.timing import Timed, limited, timed
from iec.models.cards import card
from iec.sampling.network import Prediction

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
    now = iter([0.0, 0.0, 1e3])
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(speed, "measurements", lambda _: {"a": lambda: iter([Line.note("a")]), "b": lambda: iter([Line.note("b")])})
    a, b = speed.measure(full)
    assert (a.verdict, b.verdict) == ("note", "skipped")
    assert "no time was left" in b.remark


def test_every_architecture_is_timed_at_the_papers_batch(full):
    names = speed.measurements(full).keys()
    assert {*speed.ARCHITECTURES, *(f"{name}, compiled" for name in speed.COMPILED)} <= names
    for name in speed.ARCHITECTURES:
        subject = Subject.of(name, full)
        assert subject.card == card(name)
        assert len(subject.indices) == card(name).batch_size


def test_bare_calls_and_the_loop_make_the_same_calls(tmp_path):
    subject = Subject.of(speed.UNCONDITIONAL, Bench(CPU, "toy", tmp_path))
    table, seen = subject.table(speed.STEPS), []

    def network(x, step, cond=None, cache=None):
        seen.append((x.shape, step))
        return Prediction(torch.zeros_like(x))

    subject.calls(network, table)()
    bare = list(seen)
    seen.clear()
    subject.trajectory(network, speed.Sampler(table))()
    assert seen == bare
    assert len(bare) == speed.STEPS
