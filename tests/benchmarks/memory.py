"""Peak memory of a program in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def peak_of(code: str) -> float:
    """Peak resident memory of a Python program, in GB.

    On Linux from /proc: ru_maxrss there is at least the resident memory of the process that started the program.
    """
    linux = "next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))"
    elsewhere = "__import__('resource').getrusage(0).ru_maxrss"
    code += f"\nprint('peak', {linux if sys.platform.startswith('linux') else elsewhere})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, KiB on Linux
    return int(out.split("peak")[-1]) / unit
