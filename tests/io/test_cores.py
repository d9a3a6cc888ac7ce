"""How many cores there are to use, and how many threads torch takes of them."""

import os

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import iec.io.cores
from iec.io.cores import cgroup_quota, intra_op_threads, usable_cores


def test_usable_are_the_least_of_bound_cores_quota_and_slurms_share(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for quota, slurm, cores in [
        (float("inf"), {}, 6),
        (3.5, {}, 3),
        (0.5, {}, 1),
        (9.0, {"SLURM_CPUS_ON_NODE": "2"}, 2),
        (9.0, {"SLURM_CPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "4"}, 4),
        (9.0, {"SLURM_CPUS_ON_NODE": "64"}, 6),
    ]:
        monkeypatch.setattr(iec.io.cores, "cgroup_quota", lambda quota=quota: quota)
        assert usable_cores(slurm) == cores


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),  # a container
        ("0::/", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "100000 100000"}, 1),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, float("inf")),
        ("5:memory:/a", {"memory/a/cpu.max": "100000 100000"}, float("inf")),
        ("", {}, float("inf")),
    ],
)
def test_the_quota_is_the_least_of_the_group_and_those_above_it(tmp_path, own, files, quota):
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n" if own else "")
    assert cgroup_quota(tmp_path / "root", tmp_path / "own") == quota
    assert cgroup_quota(tmp_path / "root", tmp_path / "nowhere") == float("inf")


def test_the_number_of_threads_is_as_before_after_the_block():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), intra_op_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        with intra_op_threads(None):
            assert torch.get_num_threads() == before + 2
        raise KeyError
    assert torch.get_num_threads() == before


def test_the_linear_algebra_of_numpy_takes_as_many_threads():
    def blas() -> list[int]:
        np.linalg.eigh(np.eye(2))  # loaded by now
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = blas()
    assert before
    with intra_op_threads(1):
        assert set(blas()) == {1}
        with intra_op_threads(None):
            assert set(blas()) == {1}
    assert blas() == before
