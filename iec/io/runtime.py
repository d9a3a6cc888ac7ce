"""Process-wide settings that an entry point makes once; importing this package changes nothing."""

import argparse
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from iec.errors import DeviceError, IECError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameter numbers of glibc's mallopt, from malloc.h."""


def keep_freed_memory() -> bool:
    """Let glibc keep freed tensors instead of returning their pages to the kernel after every layer.

    A CPU tensor of more than 32 MiB is otherwise a fresh ``mmap`` each time, and each of its pages a page fault; on
    small models that is a large part of the run time. Must be called before the first large tensor is made. Returns whether
    the allocator took the setting (False on anything but glibc, where nothing is changed).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    return all(mallopt(key, value) for key, value in [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 64 << 20)])


def resolve_device(name: str) -> torch.device:
    """``auto`` means the first CUDA device, else the CPU. Raises `DeviceError` for a device that cannot compute here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # not on ``meta``
    except (RuntimeError, AssertionError, ImportError) as error:  # NotImplementedError is a RuntimeError
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")  # torch goes on with pages on its own insides
        raise DeviceError(f"device={name} cannot be used here ({reason}). Use auto or cpu in its place.") from error
    return device


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a command: its usage names the command as it was started (``iec table``, ``python -m iec.tables``), which
    argparse itself does from Python 3.14 on; ``description`` keeps its lines.
    """
    name, spec = Path(sys.argv[0]).name, getattr(sys.modules["__main__"], "__spec__", None)
    if name.endswith(".py") and spec is not None:  # a script has none
        name = f"python -m {spec.name.removesuffix('.__main__')}"
    return argparse.ArgumentParser(name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextmanager
def entry_point() -> Iterator[None]:
    """For commands: our own errors become their message and exit code 2, Ctrl-C a word on what is kept and exit code 130."""
    try:
        yield
    except IECError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("\nInterrupted. Finished shards are kept; the same command goes on from there.", file=sys.stderr)
        raise SystemExit(130) from error
