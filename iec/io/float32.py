"""Float32 that is float32 on a GPU and on a CPU, whatever another library has told torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """Within the block float32 is float32, in convolutions and in matrix products, and convolutions are deterministic. Afterwards
    everything is as before.

    By torch's newer interface: a setting for each kind of operation. The older flag of cuDNN is set, too, because torch refuses to
    read it where the two disagree.
    """
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    places = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    before = [place.fp32_precision for place in places]
    switches = cudnn.benchmark, cudnn.deterministic
    older = _older_flag()
    try:
        cudnn.allow_tf32 = False
        for place in places:
            place.fp32_precision = "ieee"
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        cudnn.allow_tf32 = older
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
        cudnn.benchmark, cudnn.deterministic = switches


def _older_flag() -> bool:
    """Of cuDNN. Torch cannot read it after a newer setting that disagrees, which says what counts."""
    cudnn: Any = torch.backends.cudnn
    try:
        return bool(cudnn.allow_tf32)
    except RuntimeError:
        return bool(cudnn.conv.fp32_precision != "ieee")
