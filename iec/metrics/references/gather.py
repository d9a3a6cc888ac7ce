"""Statistics of a large set of images: streamed, spread over processes, resumed after a kill, always the same bytes.

The images are cut into chunks (`iec.metrics.references.chunks.CHUNK`). The sums of a chunk are computed alone, and
joined to those before it in the order of chunks (`Moments.merge`). Which process computes a chunk, and whether it is this run or
one that was killed, changes nothing; memory is O(d^2) a process. A partial file holds the sum so far.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from iec.errors import IECError, MetricError
from iec.metrics.references.chunks import CHUNK, Job, Sum

SAVE_EVERY = 5
"""Chunks between two writings of the sum so far."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def gather(job: Job, partial: Path, device: torch.device, workers: int, report: Callable[[int, int], None]) -> Sum:
    """The sum over all images; goes on from ``partial`` if that is there, and keeps it up to date.

    workers: processes, each with one thread; 0 computes here, with whatever threads this process has. Several CUDA devices are
    taken in turn. ``report`` is called with (images done, images in all) of what was left to do.
    Raises what reading and extracting raise; after that, or a kill, all but the last few chunks are kept.
    """
    key = f"{job.key} {device.type}"
    total = Sum.load(partial, key)
    left, done = len(job) - min(total.chunks * CHUNK, len(job)), 0
    report(0, left)

    def progress(images: int) -> None:
        nonlocal done
        done += images
        report(done, left)

    todo = range(total.chunks, job.chunks)
    for part in _parallel(job, todo, device, workers, progress) if workers else _here(job, todo, device, progress):
        total.join(part)
        if total.chunks % SAVE_EVERY == 0:
            total.save(partial, key)
    return total


def _here(job: Job, todo: range, device: torch.device, progress: Callable[[int], None]) -> Iterator[Sum]:
    extractor = job.open(device) if todo else None
    for k in todo:
        assert extractor is not None
        yield job.chunk(k, extractor, progress)


def _parallel(job: Job, todo: range, device: torch.device, workers: int, progress: Callable[[int], None]) -> Iterator[Sum]:
    """Process w computes every ``workers``-th chunk and waits to hand over each, so no more than one of each is in memory."""
    context, pipes, processes = get_context("forkserver"), [], []
    context.set_forkserver_preload([__name__])
    workers = min(workers, len(todo))
    try:
        with one_thread():
            for w in range(workers):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(job, todo[w::workers], _device_of(device, w), theirs), daemon=True)
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
        for k in range(len(todo)):
            yield _received(pipes[k % workers], progress)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _received(pipe: Connection, progress: Callable[[int], None]) -> Sum:
    while True:
        try:
            got = pipe.recv()
        except EOFError as error:
            raise MetricError(
                "A worker process died, see above, or for want of memory. Run the same command again, with fewer --workers."
            ) from error
        if isinstance(got, Sum):
            return got
        if isinstance(got, BaseException):
            raise got
        progress(got)


def _work(job: Job, todo: range, device: torch.device, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    torch.set_num_threads(1)
    try:
        extractor = job.open(device)
        for k in todo:
            pipe.send(job.chunk(k, extractor, pipe.send))
    except BrokenPipeError:  # the parent is gone
        return
    except IECError as error:
        pipe.send(error)


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started within compute with one thread: sums split over several threads end in other last bits."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _device_of(device: torch.device, worker: int) -> torch.device:
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", worker % torch.cuda.device_count())
