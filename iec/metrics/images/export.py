"""Images of a source in the forms that other evaluators read. Streamed: memory holds a block at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iec.errors import MetricError
from iec.io.files import write_atomic
from iec.io.images import save_png, to_rgb
from iec.io.progress import Report
from iec.metrics.images.decode import SUFFIXES
from iec.metrics.images.npz import write_images
from iec.metrics.images.sources import Source


def name_of(n: int) -> str:
    """Of image n."""
    return f"{n:06d}.png"


def export_pngs(source: Source, folder: Path, report: Report) -> None:
    """000000.png, 000001.png, ... in order, each written atomically: for pytorch-fid, torch-fidelity, clean-fid.
    Grey images are grey PNG files, which those read as RGB with three equal channels.

    Raises `MetricError` for a folder with other images in it, which those tools would score together with these.
    """
    ours = {name_of(n) for n in range(len(source))}
    others = [path.name for path in folder.glob("*") if path.suffix.lower() in SUFFIXES and path.name not in ours]
    if others:
        raise MetricError(f"{folder} holds {len(others)} other images ({min(others)}, ...). Delete them, or take another folder.")
    k = 0
    for block in source.blocks():
        for image in block:
            save_png(folder / name_of(k), image)
            k += 1
        report(k, len(source))


def export_npz(source: Source, path: Path, report: Report, labels: np.ndarray | None = None) -> None:
    """``arr_0`` uint8 [N, H, W, 3] and, where given, ``arr_1``, the labels [N], as guided-diffusion's evaluator reads them;
    atomically. It reads RGB alone, so grey images are repeated to three channels.

    In the source's order: that evaluator's inception score takes chunks of 5000 images as they come, so images sorted by class
    score far too low there. Raises `MetricError` for another number of labels.
    """

    def blocks(done: int = 0) -> Iterator[np.ndarray]:
        for block in source.blocks():
            yield to_rgb(block)
            done += len(block)
            report(done, len(source))

    shape = (len(source), source.resolution, source.resolution, 3)
    write_atomic(path, lambda file: write_images(file, blocks(), shape, labels))
