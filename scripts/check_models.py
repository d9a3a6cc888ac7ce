"""Run every model's real architecture end to end with random weights, and print what it took.

    python scripts/check_models.py                                   # all models, full precision
    python scripts/check_models.py --models sd_coco --efficiency none w8a8 deepcache cachequant_w8a8
    python scripts/check_models.py --output experiments/results/models

Each row is a run of its own: ``run.py model=NAME model.random_weights=true num_images=N sampler.steps=2``. Seconds are of the whole
process, imports and the random initial weights included; memory is the peak resident set of that process. Quantization is
calibrated on one image a step with ``scale_rule=max``: this shows that a technique attaches and runs, not how good it is.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iec.io.environment import describe_device
from iec.io.files import require_folder, write_text
from iec.io.markdown import markdown_table
from iec.io.paths import user_path
from iec.io.runtime import entry_point, resolve_device
from iec.models import card, card_names

RUN = Path(__file__).parents[1] / "run.py"
PTQ = ["efficiency.scale_rule=max", "efficiency.calibration_images=1"]
CACHE = ["efficiency.interval=2"]
OVERRIDES = {
    "none": [],
    "w8a8": PTQ,
    "w4a8": PTQ,
    "deepcache": CACHE,
    "cachequant_w8a8": [*PTQ, *CACHE, "efficiency.dec_images=2"],
    "cachequant_w4a8": [*PTQ, *CACHE, "efficiency.dec_images=2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=card_names(), default=list(card_names()))
    parser.add_argument("--efficiency", nargs="+", choices=tuple(OVERRIDES), default=["none"])
    parser.add_argument("--images", nargs="+", type=int, default=[2], help="images of a run, computed in one batch")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=user_path, help="a folder that gets models.json and models.md")
    args = parser.parse_args()
    resolve_device(args.device)
    if args.output:
        require_folder(args.output, "--output")
    rows = []
    for name in args.models:
        for efficiency in args.efficiency:
            for images in args.images:
                rows.append(measure(name, efficiency, images, args.steps, args.device))
                print(" | ".join(line(rows[-1])), flush=True)
    if args.output:
        save(args.output, rows, args.device)


def measure(name: str, efficiency: str, images: int, steps: int, device: str) -> dict[str, Any]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="iec-") as folder:
        overrides = [f"model={name}", "model.random_weights=true", f"efficiency={efficiency}", *OVERRIDES[efficiency]]
        overrides += [f"num_images={images}", f"batch_size={images}", f"sampler.steps={steps}", "metrics=none"]
        command = [sys.executable, str(RUN), *overrides, f"device={device}", f"paths.output={folder}", "trace_images=0"]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None  # asked for above
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise SystemExit(f"{' '.join(command)}\n{errors}")
        manifest = json.loads(next(Path(folder).glob("*/manifest.json")).read_text())
    entry = card(name)
    return {
        "model": name,
        "efficiency": efficiency,
        "images": images,
        "steps": steps,
        "parameters": {key: component.parameters for key, component in entry.components.items()},
        "resolution": entry.resolution,
        "calls_per_image": manifest["calls_per_image"]["total"],
        "seconds_per_image": manifest["seconds_per_image"],
        "seconds": seconds,
        "peak_gb": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9,
    }


HEADER = (
    *("model", "efficiency", "parameters (M)", "image", "batch", "calls / image"),
    *("s / image", "s, whole run", "peak memory (GB)"),
)


def line(row: dict[str, Any]) -> list[str]:
    """By the columns of `HEADER`."""
    millions = " + ".join(f"{count / 1e6:.1f}" for count in row["parameters"].values())
    size = f"{row['resolution']} x {row['resolution']}"
    measured = [f"{row['seconds_per_image']:.1f}", f"{row['seconds']:.0f}", f"{row['peak_gb']:.2f}"]
    return [row["model"], row["efficiency"], millions, size, str(row["images"]), f"{row['calls_per_image']:g}", *measured]


def save(folder: Path, rows: list[dict[str, Any]], device: str) -> None:
    """models.json and models.md, which says when and on what it was measured."""
    machine, date = describe_device(resolve_device(device)), datetime.now(UTC).date().isoformat()
    note = f"Random weights, {machine}, {date}."
    write_text(folder / "models.md", f"{markdown_table(HEADER, map(line, rows))}\n\n{note}\n")
    write_text(folder / "models.json", json.dumps({"machine": machine, "date": date, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with entry_point():
        main()
