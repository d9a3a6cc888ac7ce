"""Check a machine with a GPU, measure on it, and write one report.

    iec gpu-check                          # at most 9 minutes on the first CUDA device; needs no network
    iec gpu-check --size toy               # the same parts on tiny networks: a first look
    iec gpu-check --device cpu             # a rehearsal: every part, on tiny networks. It says nothing about CUDA
    iec gpu-check --only networks,bytes     # or --skip PART,..; the parts: iec gpu-check --list

report.md and report.json are written after each part. The same command goes on from there: a part that is finished is kept, unless
the sources have changed since. Exit code 1 if a part failed, 2 for what cannot be run.
"""

import argparse
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from iec.gpucheck.catalog import PARTS, chosen
from iec.gpucheck.machine import Machine
from iec.gpucheck.part import Size
from iec.gpucheck.report import write_report
from iec.gpucheck.results import stored
from iec.gpucheck.run import run_parts
from iec.io.files import require_folder
from iec.io.paths import user_path
from iec.io.resources import PACKAGE, experiments
from iec.io.runtime import command_parser, entry_point, keep_freed_memory, resolve_device

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """See the module's docstring. Returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.list:
        for part in PARTS:
            print(f"{part.name:<8} at most {part.seconds:3.0f} s  {part.question}")
        return 0
    parts = chosen(options.only, options.skip)
    device = resolve_device(options.device)
    size: Size = options.size or ("toy" if device.type == "cpu" else "full")
    folder = options.output or default_folder(device, size)
    require_folder(folder, "--output")
    keep_freed_memory()
    results = stored(folder, Machine.of(device), size, f"{datetime.now(UTC):%Y-%m-%d}")
    order = [part.name for part in PARTS]
    results = run_parts(parts, results, device, size, lambda now: write_report(now, folder), order, options.again)
    write_report(results, folder)
    failed = [part.name for part in results.parts if part.failed]
    log.info("%s: %s", folder / "report.md", f"failed: {', '.join(failed)}" if failed else "no part failed")
    return 1 if failed else 0


def default_folder(device: torch.device, size: Size) -> Path:
    """Of a GPU at full size among the results of a checkout, of all else below ``outputs``."""
    if (device.type, size) != ("cuda", "full"):
        return Path("outputs") / ("gpu_rehearsal" if device.type == "cpu" else f"gpu_{size}")
    return experiments() / "results" / "gpu" if _checkout() else Path("outputs/gpu")


def _checkout() -> bool:
    """Whether this is one, and not an installed package."""
    return experiments().parent != PACKAGE


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, or cpu for a rehearsal")
    parser.add_argument("--size", choices=("toy", "full"), help="of the networks; default: full, on a CPU toy")
    parser.add_argument("--only", metavar="PART,..", help="measure these parts alone")
    parser.add_argument("--skip", metavar="PART,..", help="measure all parts but these")
    parser.add_argument("--again", action="store_true", help="measure the chosen parts anew, also those that are finished")
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="DIR",
        help=f"of the report; default: {'experiments/results/gpu' if _checkout() else 'outputs/gpu'}, of a rehearsal "
        "outputs/gpu_rehearsal",
    )
    parser.add_argument("--list", action="store_true", help="list the parts and stop")
    return parser


if __name__ == "__main__":
    with entry_point():
        sys.exit(main())
