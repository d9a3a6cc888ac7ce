"""What real images score: the part of a Frechet distance that N images alone make, however good they are."""

from functools import cache
from typing import Any

import numpy as np

from iec.io.yaml import read_yaml
from iec.metrics.references.catalog import PACKAGED


@cache
def _measured() -> dict[str, Any]:
    return read_yaml(PACKAGED / "floors.yaml")


def floor(reference: str, protocol: str, score: str, n: int) -> float | None:
    """Mean score of n real test images against the reference of a data set, cifar10_train for example.

    Between the measured n by a straight line in log n and log score. None beyond them, and for what was not measured.
    """
    values = _measured().get(reference, {}).get(protocol, {}).get(score, {})
    if not values or not min(values) <= n <= max(values):
        return None
    sizes, scores = np.log(list(values)), np.log(list(values.values()))
    return float(np.exp(np.interp(np.log(n), sizes, scores)))


def real_images(reference: str) -> str | None:
    """What the real images of `floor` are; None where nothing was measured."""
    images = _measured().get(reference, {}).get("images")
    return None if images is None else str(images)
