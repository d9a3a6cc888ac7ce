"""What a run was made with: versions, device, source revision. Saved beside every cell."""

import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "numpy", "scipy", "timm", "safetensors", "hydra-core", "onnxruntime")
INSTRUCTION_SETS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")


def describe_device(device: torch.device) -> str:
    """E.g. ``NVIDIA A100 (cuda)`` or ``AMD EPYC, 2 threads (cpu)``."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (cuda)"
    return f"{_cpu_name()}, {torch.get_num_threads()} threads ({device.type})"


def installed(names: Iterable[str]) -> dict[str, str]:
    """Package -> version; those that are not installed are left out."""
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@dataclass(frozen=True)
class Environment:
    """packages: name -> version. revision: of git, None outside a clone; ``-dirty`` with uncommitted changes."""

    python: str
    platform: str
    device: str
    packages: dict[str, str]
    revision: str | None

    @classmethod
    def of(cls, device: torch.device) -> "Environment":
        """Of this process."""
        return cls(
            python=platform.python_version(),
            platform=platform.platform(),
            device=describe_device(device),
            packages=installed(PACKAGES),
            revision=git_revision(),
        )


def instruction_sets() -> list[str]:
    """Those of this CPU that 8-bit and 16-bit arithmetic depends on, by Linux's names, e.g. ``["avx2", "avx512_vnni"]``."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return []
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in INSTRUCTION_SETS if name in flags]


def git_revision() -> str | None:
    """The commit of the clone that this file belongs to. None for a copy that belongs to none, also where it is installed inside a
    clone of something else.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
