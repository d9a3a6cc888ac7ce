"""Two sets of images that are compared one by one."""

import numpy as np

from iec.errors import MetricError


def require_pairs(images: np.ndarray, reference: np.ndarray) -> None:
    """Raises `MetricError` unless both are uint8 [N, H, W, C] of one shape."""
    if images.dtype != np.uint8 or reference.dtype != np.uint8 or images.shape != reference.shape or images.ndim != 4:
        raise MetricError(
            f"Paired scores compare two uint8 [N, H, W, C] of one shape, got {images.dtype} {images.shape} and {reference.dtype} "
            f"{reference.shape}; score runs with the same num_images."
        )
