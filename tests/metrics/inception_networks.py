"""Random weights in the layout of FID's Inception file, and the two packages' own networks filled with them."""

import hashlib
import io
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from iec.gpucheck.inception import random_tensors


def random_weights(folder: Path) -> tuple[Path, str, dict[str, Tensor]]:
    """(path, sha256, tensors): a seeded network whose features differ from image to image at every depth."""
    tensors = random_tensors()
    path = folder / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(tensors, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest(), tensors


def torch_fidelity_network(tensors: dict[str, Tensor], features: tuple[str, ...] = ("2048", "logits_unbiased")) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    buffer.seek(0)
    return FeatureExtractorInceptionV3("own", list(features), feature_extractor_weights_path=buffer)


def pytorch_fid_network(tensors: dict[str, Tensor]) -> nn.Module:
    from pytorch_fid import inception

    with mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: tensors):
        return inception.InceptionV3([3]).eval()
