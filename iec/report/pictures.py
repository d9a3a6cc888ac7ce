"""Pictures as data URIs: samples as one sprite for each cell, plots, and the figures of the analysis."""

import base64
import io
import logging
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from iec.io.files import read_json
from iec.io.images import grid
from iec.tables.experiment import Experiment
from iec.tables.figures import write_plots
from iec.tables.measured import measured
from iec.tables.rows import Row
from iec.tables.styles import bases

log = logging.getLogger(__name__)
MOST_IMAGES, FEWEST_IMAGES = 16, 4
LARGEST_SIDE = 128
PIXELS_OF_A_CELL = MOST_IMAGES * 64 * 64
GAP = 1
KINDS = {
    "seconds": "Quality against measured seconds; dotted: the Pareto front",
    "error": "Distance to the reference run against the sampling step",
    "noise": "Noise that a step takes, beside the reference run",
    "scores": "Scores with their 95 % intervals",
    "cost": "Quality against counted cost; dotted: the Pareto front",
    "map": "What each correction changes",
}
RECORDED = ("cell", "num_images", "seed", "machine", "torch", "revision", "date")


@dataclass(frozen=True)
class Picture:
    """uri: the PNG in base64. width: of the PNG, in pixels. provenance: where it is from."""

    title: str
    uri: str
    width: int
    provenance: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sprite:
    """The first images of a cell in one PNG, ``columns`` to a row, ``GAP`` white pixels apart. reduced: how many pixels of an image
    became one, along a side.
    """

    label: str
    uri: str
    count: int
    columns: int
    reduced: int


def sprite_of(row: Row) -> Sprite:
    """As many images as a page of many cells can carry; their pixels as they are up to `LARGEST_SIDE`, block means above."""
    height, width = row.result.first_images(1).shape[1:3]
    reduced = -(-max(height, width) // LARGEST_SIDE)
    pixels = (height // reduced) * (width // reduced)
    images = row.result.first_images(min(MOST_IMAGES, max(FEWEST_IMAGES, PIXELS_OF_A_CELL // pixels)))
    columns = max(1, isqrt(len(images)))
    return Sprite(row.label, _png(grid(_smaller(images, reduced), columns, gap=GAP)), len(images), columns, reduced)


def _smaller(images: np.ndarray, by: int) -> np.ndarray:
    """Means of blocks of ``by`` x ``by`` pixels, uint8 [n, H // by, W // by, C]."""
    if by == 1:
        return images
    n, height, width, channels = images.shape
    kept = images[:, : height // by * by, : width // by * by]
    return kept.reshape(n, height // by, by, width // by, by, channels).mean(axis=(2, 4)).round().astype(np.uint8)


def plots_of(rows: list[Row], experiment: Experiment) -> list[Picture]:
    """Those of `write_plots` that have content."""
    with TemporaryDirectory() as folder:
        paths = write_plots(measured(rows, bases(experiment.rows)), experiment, Path(folder))
        return [_picture(_title(path.stem), path) for path in paths]


def figures_of(folder: Path, root: Path) -> list[Picture]:
    """Every PNG of a folder, with what the JSON of the same name records. root: that paths are given from."""
    found = []
    for path in sorted(folder.glob("*.png")):
        record = path.with_suffix(".json")
        values = stored if isinstance(stored := read_json(record), dict) else {}
        provenance = [("file", str(path.relative_to(root)))]
        if values:
            provenance = [
                ("numbers", str(record.relative_to(root))),
                *((key, str(values[key])) for key in RECORDED if key in values),
            ]
            provenance.append(("overrides", " ".join(map(str, values.get("overrides", [])))))
        title = f"{values['analysis']}: {values['label']}" if {"analysis", "label"} <= values.keys() else path.stem
        try:
            found.append(_picture(title, path, provenance))
        except OSError as error:
            log.error("%s is left out: %s", path, error)
    return found


def _title(stem: str) -> str:
    """``error-cached`` -> the kind's title, with the name of the figure, and of the model where there are several."""
    kind, _, name = stem.partition("-")
    return KINDS[kind] + (f": {name.replace('-', ' ')}" if name else "")


def _picture(title: str, path: Path, provenance: list[tuple[str, str]] | None = None) -> Picture:
    with Image.open(path) as image:
        width = image.width
    return Picture(title, _uri(path.read_bytes()), width, tuple(provenance or ()))


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return _uri(file.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
