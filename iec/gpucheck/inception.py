"""FID's Inception network with random weights, as a file in the layout of the real one."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "weights-inception-random.pth"


def random_inception(folder: Path) -> Path:
    """The file: seeded weights whose features differ from image to image at every depth."""
    path = folder / FILE
    torch.save(random_tensors(), path)
    return path


def random_tensors() -> dict[str, Tensor]:
    """By their names in the file."""
    with warnings.catch_warnings():  # the package sets filters for the whole process
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unfilled(FeatureExtractorInceptionV3):
        """Takes a file without tensors."""

        def load_state_dict(self, *_: Any, **__: Any) -> None:
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng(devices=[]):
        tensors: dict[str, Tensor] = Unfilled("random", ["2048"], feature_extractor_weights_path=nothing).state_dict()
    draw = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        if name.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=draw)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.7, 1.4, generator=draw)
        elif name.endswith(("bn.bias", "running_mean")):
            value.normal_(0, 0.1, generator=draw)
        elif name == "fc.weight":
            value.normal_(0, 0.05, generator=draw)
        elif name == "fc.bias":
            value.normal_(0, 3.0, generator=draw)
    return tensors
