"""From images to features: what an extractor is, and how images of any source are fed to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from iec.errors import MetricError
from iec.io.float32 import without_tf32
from iec.io.images import to_rgb

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a batch: (pooled, spatial, logits)."""


class Extractor(Protocol):
    """A fixed network that turns images into features. Anything with these members can be scored with.

    name: short, used in file names. label: as printed in ``FID (label)``. batch: images in one call.
    """

    name: str
    label: str
    batch: int

    @property
    def identity(self) -> dict[str, Any]:
        """All that the features depend on, as JSON: weights' sha256, layers, input size, normalisation ..."""
        ...

    @property
    def hash(self) -> str:
        """`iec.io.files.canonical_hash` of ``identity``."""
        ...

    def __call__(self, images: np.ndarray) -> Arrays:
        """uint8 [B, H, W, 3] -> float32 (pooled [B, d], spatial [B, k], logits [B, K]). Features depend on their image alone. k
        and K are 0 where there are none.
        """
        ...


@runtime_checkable
class View(Protocol):
    """What an extractor also has whose features are a choice of a network's outputs: those of equal ``source`` share one pass."""

    source: str

    def outputs(self, images: np.ndarray) -> Any:
        """All that any extractor of this source chooses from. uint8 [B, H, W, 3]."""
        ...

    def view(self, outputs: Any) -> Arrays:
        """This extractor's features."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of N images in order, float32, and where they come from; enough for every score but the paired ones. Kinds that the
    extractor does not give have no columns.

    resolution: height (= width) of the images before any resizing. extractor: the extractor's hash.
    """

    pooled: np.ndarray
    spatial: np.ndarray
    logits: np.ndarray
    resolution: int
    extractor: str

    def __len__(self) -> int:
        return len(self.pooled)


def extract(
    images: np.ndarray | Iterable[np.ndarray], extractor: Extractor, progress: Callable[[int], None] | None = None
) -> Features:
    """Features of uint8 images by one extractor: see `extract_each`."""
    return extract_each(images, [extractor], progress)[0]


def extract_each(
    images: np.ndarray | Iterable[np.ndarray], extractors: Sequence[Extractor], progress: Callable[[int], None] | None = None
) -> list[Features]:
    """Features of uint8 images by each extractor, in one pass over the images: one array [N, H, W, 1 or 3], or an iterable of such
    arrays of any lengths.

    Images are regrouped into batches of ``extractor.batch``, so the result does not depend on how the iterable cuts them, nor on
    the other extractors. The extractors see grey images as RGB with three equal channels.
    ``progress`` is called with the number of images of each batch as it is done.
    Raises `MetricError` for extractors of different batch sizes, another dtype or shape, fewer than 2 images, all images equal,
    every image one flat colour, or NaN features.
    """
    sizes = {extractor.batch for extractor in extractors}
    if len(sizes) != 1:
        raise MetricError(f"Extractors with batches of {sorted(sizes)} cannot share a pass; extract with one after the other.")
    columns: list[tuple[list[np.ndarray], ...]] = [([], [], []) for _ in extractors]
    first: np.ndarray | None = None
    count, varied, structured = 0, False, False
    for batch in regroup(images, sizes.pop()):
        first = batch[0] if first is None else first
        varied = varied or bool((batch != first).any())
        structured = structured or bool((batch != batch[:, :1, :1]).any())
        count += len(batch)
        for own, arrays in zip(columns, by_each(extractors, batch), strict=True):
            for column, value in zip(own, arrays, strict=True):
                column.append(value)
        if progress is not None:
            progress(len(batch))
    if first is None or count < 2:
        raise MetricError(f"{count} image(s) cannot be scored; use at least 2.")
    if not varied or not structured:
        what = "one flat colour" if varied else "the same"
        raise MetricError(f"All {count} images are {what}; look at them: the sampler or its weights are broken.")
    resolution = len(first)
    return [_features(own, resolution, extractor.hash) for own, extractor in zip(columns, extractors, strict=True)]


def by_each(extractors: Sequence[Extractor], images: np.ndarray) -> list[Arrays]:
    """Features of a batch by each extractor. Those that are a `View` of one source cost one pass of its network."""
    outputs: dict[str, Any] = {}
    arrays = []
    for extractor in extractors:
        if not isinstance(extractor, View):
            arrays.append(extractor(images))
            continue
        if extractor.source not in outputs:
            outputs[extractor.source] = extractor.outputs(images)
        arrays.append(extractor.view(outputs[extractor.source]))
    return arrays


def _features(columns: tuple[list[np.ndarray], ...], resolution: int, extractor: str) -> Features:
    pooled, spatial, logits = (_joined(column) for column in columns)
    if not all(np.isfinite(value).all() for value in (pooled, spatial, logits)):
        raise MetricError("The extractor returned NaN or infinity; check its weights and device.")
    return Features(pooled, spatial, logits, resolution, extractor)


Forward = Callable[[Tensor], tuple[Tensor, ...]]
"""uint8 [batch, H, W, 3] -> outputs, each [batch, ...]."""


@torch.inference_mode()
def padded(images: np.ndarray, batch: int, device: torch.device, forward: Forward) -> tuple[np.ndarray, ...]:
    """float32 outputs for 1 .. ``batch`` images by ``forward``, which always gets a whole batch and works without TF32: so that an
    image's features do not depend on how many are scored. Raises `MetricError`.
    """
    if not 1 <= len(images) <= batch:
        raise MetricError(f"{len(images)} images in one call; pass 1 .. {batch}, or use iec.metrics.extractors.features.extract.")
    whole = np.zeros((batch, *images.shape[1:]), np.uint8)
    whole[: len(images)] = images
    with without_tf32():
        outputs = forward(torch.from_numpy(whole).to(device))
    return tuple(value[: len(images)].float().cpu().numpy() for value in outputs)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """All parts in one array; they are let go, so that never more than one column is in memory twice."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def regroup(images: np.ndarray | Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """RGB batches of exactly ``size`` images, the last one shorter, in order; grey ones are repeated to RGB."""
    pending: list[np.ndarray] = []
    count, shape = 0, None
    for block in [images] if isinstance(images, np.ndarray) else images:
        shape = _check(block, shape)
        while len(block):
            part, block = block[: size - count], block[size - count :]
            pending.append(part)
            count += len(part)
            if count == size:
                yield to_rgb(np.concatenate(pending))
                pending, count = [], 0
    if pending:
        yield to_rgb(np.concatenate(pending))


def _check(block: np.ndarray, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if not isinstance(block, np.ndarray) or block.dtype != np.uint8:
        kind = block.dtype if isinstance(block, np.ndarray) else type(block).__name__
        raise MetricError(f"Images must be uint8 arrays, got {kind}; convert with iec.io.images.to_uint8.")
    if block.ndim != 4 or block.shape[3] not in (1, 3) or block.shape[1] != block.shape[2] or block.shape[1] < 2:
        raise MetricError(f"Images must be square [N, H, W, 1 or 3], got {block.shape}; channels come last.")
    if shape is not None and block.shape[1:] != shape:
        raise MetricError(f"Images of {block.shape[1:]} and {shape} are mixed; score one resolution, all grey or all RGB.")
    return block.shape[1:]
