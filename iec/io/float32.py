"""Float32 that is float32 on every device, whatever another library has told torch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """Within the block float32 is float32 on a GPU, in convolutions and in matrix products, and convolutions are deterministic.

    Torch has two interfaces to the latter. Writing by the older one sets both; what was set by the newer one it cannot read.
    """
    matmul = torch.backends.cuda.matmul
    newer = matmul.fp32_precision
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        matmul.fp32_precision = newer
