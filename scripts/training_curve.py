"""What a correction does to a network as it is trained: scores of several checkpoints of one run, without and with correction.

    python scripts/training_curve.py ddim_fashion_small 0.8M=iec/models/ddim_fashion_small 1.5M=DIR
    python scripts/training_curve.py ddim_fashion_small 0.8M=DIR 1.5M=DIR --out experiments/results num_images=512 sampler.steps=50

A checkpoint is IMAGES=FOLDER: the images that it has seen (M: millions) and its weights in diffusers' layout. Each is sampled from
the same noise without correction, with IEC on every step, and with Heun, which costs as many calls as IEC. Written beside the
table, to OUTPUT/tables/NAME-HASH or DIR/NAME: training.png, each score against the images seen.
"""

import argparse
import logging
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from iec.errors import ConfigError
from iec.io.files import read_json
from iec.io.paths import require_writable, user_path
from iec.io.runtime import entry_point
from iec.tables.command import assemble
from iec.tables.experiment import Experiment
from iec.tables.measured import Measured
from iec.tables.plots import save

CORRECTIONS = {"": "iec=none", " + IEC": "iec=all_steps", " + Heun": "iec=heun"}
LINES = {"": ("#4c4c4c", "o-"), " + IEC": ("#d55e00", "s--"), " + Heun": ("#0072b2", "^:")}
FORM = "write the images that it has seen and its folder, 1.5M=DIR."


def checkpoints(given: list[str]) -> dict[str, str]:
    """IMAGES -> FOLDER, by rising number of images. Raises `ConfigError` for anything else."""
    found: dict[str, str] = {}
    for text in given:
        images, _, folder = text.partition("=")
        try:
            seen = millions(images)
        except ValueError as error:
            raise ConfigError(f"{text!r} is no checkpoint: {FORM}") from error
        if not folder:
            raise ConfigError(f"{text!r} has no folder: {FORM}")
        if seen in map(millions, found):
            raise ConfigError(f"{text!r} is a second checkpoint of {images} images. Give each number of images once.")
        found[images] = str(user_path(folder))
    if len(found) < 2:
        raise ConfigError("A curve needs two checkpoints or more: 0.8M=DIR 1.5M=DIR.")
    return dict(sorted(found.items(), key=lambda item: millions(item[0])))


def millions(images: str) -> float:
    """``1.5M`` -> 1.5. Raises `ValueError`."""
    if not images.endswith("M") or not 0 < float(images[:-1]) < float("inf"):
        raise ValueError(images)
    return float(images[:-1])


def experiment_of(model: str, folders: dict[str, str], overrides: list[str]) -> Experiment:
    """Three rows a checkpoint; distances are to the last checkpoint without correction."""
    rows = {
        f"{images}{ending}": [f"model={model}", f"model.weights={folder}", correction, *overrides]
        for images, folder in folders.items()
        for ending, correction in CORRECTIONS.items()
    }
    title = f"{model}: checkpoints of one training, by the images that they have seen"
    references = (list(folders)[-1],)
    return Experiment(f"training_{model}", title, references, rows, figures={}, labels=tuple(rows), grid=tuple(rows)[-9:])


def draw(rows: list[Measured], images: list[str], path: Path, title: str) -> None:
    """A panel for each score, a line for each correction, against the images seen (logarithmic); dotted: as many real images."""
    by_label = {row.label: row for row in rows}
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.8), squeeze=False)
    x = [millions(text) for text in images]
    for axis, name in zip(axes[0], names, strict=True):
        for ending, (colour, line) in LINES.items():
            scores = [by_label[text + ending].scores[name] for text in images]
            axis.plot(x, [score.value for score in scores], line, color=colour, label=ending.strip(" +") or "no correction")
            axis.fill_between(x, [s.low for s in scores], [s.high for s in scores], color=colour, alpha=0.15, linewidth=0)
        if name in rows[0].floors:
            axis.axhline(rows[0].floors[name], color="#4c4c4c", linestyle=":", label="as many real images")
        axis.set(xscale="log", xlabel="images seen in training (millions)", title=name)
        axis.set_xticks(x, [text.removesuffix("M") for text in images])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    save(figure, path, title)


def main(argv: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("given", nargs="+", metavar="IMAGES=FOLDER|OVERRIDE")
    parser.add_argument("--out", type=user_path, metavar="DIR", help="for the table and its pictures")
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folders = checkpoints([text for text in args.given if text.partition("=")[0].endswith("M")])
    overrides = [text for text in args.given if not text.partition("=")[0].endswith("M")]
    experiment = experiment_of(args.model, folders, overrides)
    if args.out is not None:
        require_writable(args.out / experiment.name / "table.md", "--out DIR")
    cells = experiment.cells()
    folder = assemble(experiment, cells, {}, compute=True, out=args.out)
    assert folder is not None  # a row that fails ends it with that error
    rows = [Measured.from_json(entry) for entry in read_json(folder / "table.json")]
    draw(rows, list(folders), folder / "training.png", f"{experiment.title}\nN = {rows[0].images}; band: 95 % interval")


if __name__ == "__main__":
    with entry_point():
        main()
