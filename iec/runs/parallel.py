"""One cell on many processes: by image range over tasks of a cluster, and over the devices of one machine.

Every process takes micro-batches of the same fixed grid, so that the bytes are those of one process. The cell's folder is all that
they share: nothing is sent between them, and it does not matter which of them run at the same time, or are killed.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from iec.errors import ConfigError, DeviceError, IECError

log = logging.getLogger(__name__)
UNSPLIT = {"shards": 1, "shard": None, "devices": 1}
"""The settings of a cell that one process computes. How it is split is no part of a cell."""
LOOK_SECONDS = 0.2
TAIL_LINES = 5
Batch = tuple[int, ...]


class WorkerError(IECError):
    """A process on one of several devices failed."""


@dataclass(frozen=True)
class Share:
    """The micro-batches k = index, index + count, index + 2 count, ..: 0 <= index < count.

    Dealt out in turn, the first images, whose trajectories are kept, and those that are asked for later spread evenly.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, config: DictConfig) -> "Share":
        """What ``shards`` and ``shard`` ask for. Raises `ConfigError`."""
        shards, shard = config.shards, config.shard
        if shards < 1:
            raise ConfigError(f"shards={shards} must be at least 1.")
        if shard is None and shards > 1:
            raise ConfigError(
                f"shards={shards} splits the cell into {shards} tasks: say which one this is (shard=0 .. {shards - 1}), or run all "
                f"with -m 'shard=range({shards})'."
            )
        if not 0 <= (shard or 0) < shards:
            raise ConfigError(f"shard={shard} must be in 0 .. {shards - 1} with shards={shards}.")
        return cls(shard or 0, shards)

    def among(self, devices: int) -> list["Share"]:
        """This share split into one for each device."""
        return [Share(self.index + self.count * k, self.count * devices) for k in range(devices)]

    def take(self, batches: Sequence[Batch]) -> list[Batch]:
        return list(batches[self.index :: self.count])

    def missing_shards(self, batches: Sequence[Batch], missing: Iterable[Batch]) -> list[int]:
        """The shards that ``missing`` micro-batches belong to."""
        numbers = {batch: k for k, batch in enumerate(batches)}
        return sorted({numbers[batch] % self.count for batch in missing})


WHOLE = Share()


def devices_of(config: DictConfig, device: torch.device) -> tuple[str, ...]:
    """The devices that ``devices`` asks for, of the type of ``device``. Raises `ConfigError` or `DeviceError`."""
    count = config.devices
    if count < 1:
        raise ConfigError(f"devices={count} must be at least 1.")
    if count == 1:
        return (str(device),)
    if device.type == "cpu":
        return ("cpu",) * count
    if device.index is not None:
        raise ConfigError(
            f"devices={count} takes the first {count} devices, and device={device} is one. Use device={device.type}; "
            "CUDA_VISIBLE_DEVICES=2,3 chooses which are seen."
        )
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > there:
        raise DeviceError(f"devices={count}, but there are {there} of type {device.type} here. Use devices={there}.")
    return tuple(f"{device.type}:{k}" for k in range(count))


def run_workers(module: str, config: DictConfig, share: Share, devices: Sequence[str]) -> None:
    """Run ``python -m module`` once for each device, each with its part of ``share``, until all have ended well.

    A worker gets its configuration on its standard input (`worker_config`); what it prints is logged with its device before it.
    When one fails the others are stopped, as they are when this process is interrupted or dies. Raises `WorkerError`.
    """
    workers: list[_Worker] = []
    try:
        for device, part in zip(devices, share.among(len(devices)), strict=True):
            name = device if devices.count(device) == 1 else f"{device}, process {len(workers)}"
            split = {"device": device, "shards": part.count, "shard": part.index, "devices": 1}
            settings = {**split, "logger": {"name": "none"}}  # this process logs
            workers.append(_Worker(name, module, OmegaConf.merge(config, settings)))
        while any(worker.process.poll() is None for worker in workers):
            _require_none_failed(workers)
            time.sleep(LOOK_SECONDS)
        _require_none_failed(workers)
    finally:
        for worker in workers:
            worker.stop()


def _require_none_failed(workers: "list[_Worker]") -> None:
    for worker in workers:
        if worker.process.poll():
            raise WorkerError(
                f"{worker.name} failed, {worker.error()}\nFinished shards are kept; the same command goes on from there."
            )


class _Worker:
    """A process in a session of its own: signals for this process do not reach it, and it ends when its standard input does."""

    def __init__(self, name: str, module: str, config: Any) -> None:
        self.name, self.tail = name, deque[str](maxlen=TAIL_LINES)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # on a CPU the bytes depend on it
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),  # for techniques beside run.py
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(OmegaConf.to_container(config, resolve=True)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has failed already, and its exit code tells
            pass

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.tail.append(line.rstrip())
            log.info("[%s] %s", self.name, line.rstrip())

    def error(self) -> str:
        """How it ended, with what it said last."""
        self.reader.join()
        code = self.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {next((line for line in reversed(self.tail) if line), 'it printed nothing')}"

    def stop(self) -> None:
        self.process.kill()  # what is on disk is complete or absent
        self.process.wait()
        self.reader.join()


def worker_config() -> DictConfig:
    """In a worker: its configuration. From here on the process ends at once when its parent is gone."""
    line = sys.stdin.readline()

    def end_with_parent() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if not line:
        raise SystemExit(1)
    return OmegaConf.create(json.loads(line))
