"""The cores of a CPU that this process may use, and the threads that one operation is spread over."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
"""What Slurm gives a task, where it does not bind tasks to their cores. The second for a job that does not ask for a number."""


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """At least 1: the least of what the process is bound to, its control groups' quotas (a container's) and Slurm's share."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = next((int(given) for name in SLURM if (given := environment.get(name, "")).isdecimal()), bound)
    return max(1, int(min(bound, slurm, cgroup_quota())))


def cgroup_quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """CPU seconds per second that the control groups of this process allow, versions 1 and 2; infinity without a limit.

    A limit of any group above holds too. In a container the groups above its own are not seen, and its own is the root.
    """
    quotas = [float("inf")]
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            quotas.append(_quota(folder))
            if folder == top:
                break
    return min(quotas)


def _quota(folder: Path) -> float:
    """Of one group. cpu.max is ``max 100000`` or ``150000 100000``; in version 1 a quota of -1 is none."""
    words = _text(folder / "cpu.max").split() or [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return float("inf")
    return int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    """Empty if the file is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


@contextmanager
def intra_op_threads(count: int | None) -> Iterator[None]:
    """Let torch, numpy and scipy spread an operation over ``count`` threads within the block, and over as many as before after it.

    None: as before. On a CPU the last bits of an operation depend on the number. For torch it holds for the calling thread and what
    it calls, for the linear algebra of numpy and scipy (BLAS) in the whole process: with one busy neighbour, BLAS threads that wait
    for each other made a score of seconds last minutes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
