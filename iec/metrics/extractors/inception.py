"""The Inception network of FID as an extractor: one pass gives the features of FID, KID, precision and recall, sFID and IS.

Network: torch-fidelity's ``FeatureExtractorInceptionV3``, the TensorFlow graph "inception-2015-12-05" layer by layer. Its own
forward is not used: it pools what sFID needs unpooled, and knows one resize. The features, named as in the evaluator of arXiv
2105.05233 (guided-diffusion, evaluations/evaluator.py):

    pooled   [2048]  pool_3: FID, KID, precision, recall
    spatial  [2023]  mixed_6/conv, channels 0 .. 6 of 17 x 17 positions in H, W, C order: sFID. It is the first branch of torch's
                     Mixed_6d, after batch norm and ReLU, hence the first channels of that block's output
    logits   [1008]  softmax/logits/MatMul, without the bias: IS

Batch norms are folded into the convolutions (in float64, once) and channels come last in memory: a third of the time on a CPU for
differences of some 1e-6.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iec.errors import WeightsError
from iec.io.files import canonical_hash
from iec.metrics.extractors.features import padded
from iec.metrics.extractors.inception_weights import SHA256, find_weights

INPUT_SIZE, SPATIAL_BLOCK, SPATIAL_CHANNELS = 299, "Mixed_6d", 7
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2")
MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
LAYERS = (*STEM, *(f"Mixed_{name}" for name in MIXED), "AvgPool")


def tensorflow_input(x: Tensor) -> Tensor:
    """Float [B, 3, H, W] in 0 .. 255 -> [B, 3, 299, 299] in [-1, 1): TensorFlow 1's bilinear resize, then (x - 128) / 128.

    Output pixel i is read at i H / 299 (no half-pixel centres, no antialiasing), between the rows floor and floor + 1. Rows first
    get their new width, then are joined: the same operations on the same numbers as torch-fidelity's four corners, on fewer of
    them.
    """
    for axis in (3, 2):
        size = x.shape[axis]
        at = torch.arange(INPUT_SIZE, dtype=torch.float32, device=x.device) * torch.tensor(size / INPUT_SIZE, dtype=torch.float32)
        low = at.long()
        below = x.index_select(axis, low)
        above = x.index_select(axis, (low + 1).clamp_max(size - 1))
        x = below + (above - below) * (at - low).view(-1, *(1,) * (3 - axis))
    return (x - 128) / 128


def pytorch_fid_input(x: Tensor) -> Tensor:
    """Float [B, 3, H, W] in 0 .. 255 -> [B, 3, 299, 299] in [-1, 1]: x / 255, bilinear with half-pixel centres, 2 x - 1."""
    x = F.interpolate(x / 255, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
    return 2 * x - 1


class Resize(NamedTuple):
    """A convention for what the network sees. name, label: of the extractor that uses it."""

    name: str
    label: str
    prepare: Callable[[Tensor], Tensor]
    resize: str
    normalisation: str


TENSORFLOW = Resize(
    "inception", "Inception", tensorflow_input, "TensorFlow 1 bilinear, origin at the corner, no antialias", "(x - 128) / 128"
)
PYTORCH_FID = Resize(
    "inception_pytorch_fid", "pytorch-fid", pytorch_fid_input, "torch bilinear, align_corners=False, no antialias", "2 x / 255 - 1"
)


class Inception:
    """An `iec.metrics.extractors.features.Extractor`: Inception of FID with one of two resizes, `TENSORFLOW` or `PYTORCH_FID`.

    Always computes batches of 50, padding a short one, in float32 without TF32, so that an image's features do not depend on how
    many images are scored.
    """

    batch = 50

    def __init__(
        self,
        device: torch.device | str = "cpu",
        resize: Resize = TENSORFLOW,
        weights: Path | str | None = None,
        digest: str = SHA256,
    ) -> None:
        """weights: the file or its folder; by default as `find_weights` says. digest: its SHA-256. Raises `WeightsError`."""
        self.device, self.resize, self.weights_sha256 = torch.device(device), resize, digest
        self.name, self.label = resize.name, resize.label
        network = fold_batch_norms(load_network(find_weights(weights, digest)))
        self.network = network.to(self.device).to(memory_format=torch.channels_last)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "network": "torch-fidelity FeatureExtractorInceptionV3 (inception-2015-12-05), batch norms folded",
            "weights_sha256": self.weights_sha256,
            "input_size": INPUT_SIZE,
            "resize": self.resize.resize,
            "normalisation": self.resize.normalisation,
            "pooled": "pool_3",
            "spatial": f"{SPATIAL_BLOCK}.branch1x1[:{SPATIAL_CHANNELS}], 17 x 17, HWC",
            "logits": "fc without bias",
        }

    @property
    def hash(self) -> str:
        return canonical_hash(self.identity)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8 [B <= 50, H, W, 3] -> float32 (pooled [B, 2048], spatial [B, 2023], logits [B, 1008])."""
        pooled, spatial, logits = padded(images, self.batch, self.device, self._forward)
        return pooled, spatial, logits

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.resize.prepare(images.permute(0, 3, 1, 2).float()).contiguous(memory_format=torch.channels_last)
        spatial = x
        for name in LAYERS:
            x = getattr(self.network, name)(x)
            if name == SPATIAL_BLOCK:
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # B x 2023, H W C
        pooled = x.flatten(1)  # B x 2048
        return pooled, spatial, pooled @ self.network.fc.weight.T  # type: ignore[union-attr, operator]  # B x 1008


def load_network(path: Path) -> nn.Module:
    """torch-fidelity's network in evaluation mode, each tensor of the file in its place. Raises `WeightsError`.

    The file is read as tensors only and handed on in memory, as torch-fidelity would unpickle anything. The caller's random state
    is left as it is.
    """
    try:
        with warnings.catch_warnings():  # the package sets filters for the whole process
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise WeightsError("The Inception network comes with torch-fidelity.  pip install 'torch-fidelity>=0.4,<0.5'") from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        buffer.seek(0)
        with torch.random.fork_rng(devices=[]):  # layers are initialised before they are filled
            return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise WeightsError(f"{path} does not hold the tensors of FID's Inception network: {error}") from error


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Each convolution takes over the batch norm behind it, in float64; the result is float32 again."""
    network = network.double()
    for block in network.modules():
        if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)  # type: ignore[type-var, arg-type]
            block.bn = nn.Identity()
    return network.float().requires_grad_(False)
