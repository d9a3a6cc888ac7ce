"""The project's commands. Each is also a module, which `python -m` runs alike."""

import os
import runpy
import sys

from iec import __version__

COMMANDS = {
    "run": ("iec.runs", "compute one cell, or many with -m (as python run.py)"),
    "table": ("iec.tables", "a table and its pictures from an experiment file"),
    "score": ("iec.metrics", "scores of anyone's images"),
    "convert": ("iec.models.checkpoints", "convert an original checkpoint to safetensors"),
    "export": ("iec.efficiency.engine", "write the network of a cell as an ONNX file for an engine"),
    "report": ("iec.report", "one HTML page of all that is finished"),
    "gpu-check": ("iec.gpucheck", "check and measure a machine with a GPU, in one report"),
}
"""Command -> its module, and what it does."""
SUBCOMMANDS = {"score"}
"""Commands that are one of several of their module."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"    iec {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    end = "iec COMMAND --help lists what a command takes, iec --version says which release this is."
    return "\n".join(["usage: iec COMMAND ...", "", *lines, "", end])


def main() -> None:
    """Run the command that the first argument names; exit code 2 if there is none of that name. No command is imported before."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    if sys.argv[1] == "--version":
        print(f"iec {__version__}")
        raise SystemExit(0)
    name, *arguments = sys.argv[1:]
    if name not in COMMANDS:
        print(f"iec: unknown command {name!r}; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    # Idle OpenMP threads of libgomp spin only briefly before they sleep, see run.py. It is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.argv = [*(["iec", name] if name in SUBCOMMANDS else [f"iec {name}"]), *arguments]
    runpy.run_module(COMMANDS[name][0], run_name="__main__")


if __name__ == "__main__":
    main()
