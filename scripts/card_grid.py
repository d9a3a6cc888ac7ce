"""The picture of a bundled model's card: samples beside real images.

    python scripts/card_grid.py ddim_fashion_small --data /usr/share/datasets/fashion-mnist
    python scripts/card_grid.py ddim_cifar_small --data data sampler.steps=100

Left: images 0 .. 63 of the cell (seed 0, no correction, T = 50 unless overridden). Right: the first 64 training images. Written to
iec/models/MODEL/samples.png.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from iec.io.images import grid
from iec.io.paths import user_path
from iec.io.runtime import entry_point
from iec.metrics.references.prepare import ARRAYS
from iec.runs.runner import run_cell
from iec.tables.experiment import Experiment
from iec.tables.plots import save

IMAGES = 64
PACKAGED = Path(__file__).parents[1] / "iec/models"


def draw(samples: np.ndarray, real: np.ndarray, path: Path, titles: tuple[str, str]) -> None:
    """Two squares of uint8 images [N, 32, 32, C] side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 5))
    for axis, images, title in zip(axes, (samples, real), titles, strict=True):
        axis.imshow(grid(images, columns=8, scale=2), interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(title, fontsize=10)
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("ddim_fashion_small", "ddim_cifar_small"))
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--data", type=user_path, default=Path("data"), help="folder with the training images")
    args = parser.parse_intermixed_args(argv)
    own = [f"model={args.model}", "iec=none", "sampler.steps=50", "metrics=none", *args.overrides, f"num_images={IMAGES}"]
    cell = Experiment("card", args.model, references=(), rows={args.model: own}, figures={}).cells()[args.model]
    real = ARRAYS[cell.card.reference](args.data)[:IMAGES]  # before the sampling, which takes longer
    result = run_cell(cell)
    assert result is not None  # the cell is not a share of one
    titles = f"{args.model}, {len(cell.sampler.timetable)} DDIM steps, seed {cell.seed}", "real training images"
    draw(result.first_images(IMAGES), real, PACKAGED / args.model / "samples.png", titles)


if __name__ == "__main__":
    with entry_point():
        main()
