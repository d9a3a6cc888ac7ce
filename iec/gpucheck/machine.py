"""The machine that was measured on, as the report says it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from iec.io.cores import usable_cores
from iec.io.environment import Environment, describe_device, instruction_sets
from iec.io.files import canonical_hash, sha256
from iec.io.resources import PACKAGE


@dataclass(frozen=True)
class Machine:
    """environment: versions, source revision. facts: the device's and the libraries' versions by name. flags: torch's settings that
    change the arithmetic, as they are by default in a process of ours. cpu, cores: what computes the references. version: of this
    package's sources, see `source_version`.
    """

    device: str
    kind: str
    environment: Environment
    facts: dict[str, str]
    flags: dict[str, str]
    cpu: str
    cores: int
    version: str

    @classmethod
    def of(cls, device: torch.device) -> "Machine":
        """Of this process."""
        return cls(
            device=describe_device(device),
            kind=device.type,
            environment=Environment.of(device),
            facts=_cuda_facts(device) if device.type == "cuda" else {},
            flags=arithmetic_flags(),
            cpu=" ".join([describe_device(torch.device("cpu")), *instruction_sets()]),
            cores=usable_cores(),
            version=source_version(),
        )


def _cuda_facts(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "devices": str(torch.cuda.device_count()),
        "capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "multiprocessors": str(properties.multi_processor_count),
        "driver": driver_version(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }


def driver_version() -> str:
    """As nvidia-smi tells it; ``unknown`` where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.split("\n")[0].strip() or "unknown"


def arithmetic_flags() -> dict[str, str]:
    """Torch's settings of float arithmetic on a GPU."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags = {
        "TF32 in matrix products": matmul.allow_tf32,
        "TF32 in convolutions": cudnn.allow_tf32,
        "float16 sums in float16": matmul.allow_fp16_reduced_precision_reduction,
        "bfloat16 sums in bfloat16": matmul.allow_bf16_reduced_precision_reduction,
        "cuDNN benchmark": cudnn.benchmark,
        "cuDNN deterministic": cudnn.deterministic,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "unset"),
    }
    return {name: {True: "on", False: "off"}.get(value, str(value)) for name, value in flags.items()}


def source_version(folder: Path = PACKAGE) -> str:
    """12 digits of a hash over the package's sources: what decides whether a part is measured again."""
    files = sorted(path for kind in ("py", "cpp", "yaml") for path in folder.rglob(f"*.{kind}"))
    return canonical_hash({str(path.relative_to(folder)): sha256(path) for path in files})[:12]
