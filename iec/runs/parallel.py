"""One cell on many processes: by image range over tasks of a cluster, and over the devices or the cores of one machine.

Every process takes micro-batches of the same fixed grid, and computes on a CPU with the same number of threads, so that the bytes
are those of one process. The cell's folder is all that they share: it does not matter which of them run at the same time, or are
killed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from iec.errors import ConfigError, DeviceError
from iec.io.cores import usable_cores

UNSPLIT = {"shards": 1, "shard": None, "devices": 1, "processes": "auto"}
"""The settings of a cell that is not split. How it is split is no part of a cell."""
WORTH_A_PROCESS = 500
"""Images times steps. A second process has to load the model before it helps."""
Batch = tuple[int, ...]


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

    def take(self, batches: Sequence[Batch]) -> list[Batch]:
        return list(batches[self.index :: self.count])

    def missing_shards(self, batches: Sequence[Batch], missing: Iterable[Batch]) -> list[int]:
        """The shards that ``missing`` micro-batches belong to."""
        numbers = {batch: k for k, batch in enumerate(batches)}
        return sorted({numbers[batch] % self.count for batch in missing})


WHOLE = Share()


@dataclass(frozen=True)
class Split:
    """How the work of a task is spread over this machine.

    devices: one process on each; a CPU is one device. processes: on a CPU; None: as many as are of use (`places`). threads: over
    which each of them spreads one operation, on a CPU; None on other devices, where it does not matter.
    """

    devices: tuple[str, ...]
    processes: int | None = None
    threads: int | None = None

    @classmethod
    def of(cls, config: DictConfig, device: torch.device) -> "Split":
        """What ``devices``, ``processes`` and ``threads`` ask for on devices of the type of ``device``.

        Raises `ConfigError` or `DeviceError`.
        """
        processes, threads = config.processes, config.threads
        if processes != "auto" and (not isinstance(processes, int) or processes < 1):
            raise ConfigError(f"processes={processes} must be auto or a number of at least 1.")
        if threads < 1:
            raise ConfigError(f"threads={threads} must be at least 1.")
        if config.devices < 1:
            raise ConfigError(f"devices={config.devices} must be at least 1.")
        if device.type == "cpu":
            if config.devices > 1:
                raise ConfigError(f"devices={config.devices}: a CPU is one device. Use processes={config.devices}.")
            return cls(("cpu",), None if processes == "auto" else processes, threads)
        if processes not in ("auto", config.devices):
            raise ConfigError(f"processes={processes}: on {device.type} there is one process a device. Use devices={processes}.")
        if threads > 1:
            raise ConfigError(f"threads={threads} is for a CPU, and device={device} is none. Leave threads unset.")
        return cls(_devices(config.devices, device))

    def places(self, batches: int, image_steps: int) -> tuple[str, ...]:
        """The device of each process for so many micro-batches, of ``image_steps`` images times steps each; at least one.

        Not more processes than micro-batches. On a CPU as many as were asked for, or else one for each `usable_cores` (or each
        ``threads`` of them) as long as each gets `WORTH_A_PROCESS` images times steps.
        """
        if self.threads is None:
            return self.devices[: max(1, batches)]
        useful = self.processes or min(usable_cores() // self.threads, batches * image_steps // WORTH_A_PROCESS)
        return self.devices * max(1, min(useful, batches))


def _devices(count: int, device: torch.device) -> tuple[str, ...]:
    if count == 1:
        return (str(device),)
    if device.index is not None:
        raise ConfigError(
            f"devices={count} takes the first {count} devices, and device={device} is one. Use device={device.type}; "
            "CUDA_VISIBLE_DEVICES=2,3 chooses which are seen."
        )
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > there:
        raise DeviceError(f"devices={count}, but there are {there} of type {device.type} here. Use devices={there}.")
    return tuple(f"{device.type}:{k}" for k in range(count))
