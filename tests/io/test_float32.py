"""Float32 without TF32, whatever the process allows, by either of torch's interfaces."""

import numpy as np
import pytest
import torch

from iec.io.float32 import without_tf32
from iec.metrics.extractors.features import padded

CUDNN, MKLDNN = torch.backends.cudnn, torch.backends.mkldnn
PLACES = (torch.backends.cuda.matmul, CUDNN.conv, CUDNN.rnn, MKLDNN.matmul, MKLDNN.conv, MKLDNN.rnn)
SETTINGS = {
    "nothing": lambda: None,
    "older, highest": lambda: torch.set_float32_matmul_precision("highest"),
    "older, high": lambda: torch.set_float32_matmul_precision("high"),
    "older, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older, flags": lambda: (setattr(CUDNN, "allow_tf32", False), setattr(torch.backends.cuda.matmul, "allow_tf32", True)),
    "newer, all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "newer, convolutions off": lambda: setattr(CUDNN.conv, "fp32_precision", "ieee"),
    "newer, matrix products on": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
}


def newer():
    return [place.fp32_precision for place in PLACES]


def older():
    found = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cuda.matmul.allow_tf32, lambda: CUDNN.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("torch cannot say")
    return found


@pytest.fixture(autouse=True)
def _restored():
    before, generic, flag = newer(), torch.backends.fp32_precision, CUDNN.allow_tf32
    yield
    torch.backends.fp32_precision = generic
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = flag
    for place, value in zip(PLACES, before, strict=True):
        place.fp32_precision = value


@pytest.mark.parametrize("allow", SETTINGS.values(), ids=SETTINGS)
def test_within_it_nothing_is_tf32_and_afterwards_all_is_as_before(allow):
    allow()
    before = newer(), older()
    with without_tf32():
        assert newer() == ["ieee"] * len(PLACES)
        assert CUDNN.allow_tf32 is False and CUDNN.deterministic and not CUDNN.benchmark
    assert (newer(), older()) == before


def test_an_exception_leaves_all_as_before():
    before = newer(), older()
    with pytest.raises(ZeroDivisionError), without_tf32():
        1 / 0  # noqa: B018
    assert (newer(), older()) == before


def test_a_pass_of_an_extractor_is_within_it():
    seen = []

    def forward(x):
        seen.append(newer())
        return (x,)

    padded(np.zeros((1, 4, 4, 3), np.uint8), 2, torch.device("cpu"), forward)
    assert seen == [["ieee"] * len(PLACES)]
