"""DINOv2 and CLIP as torch-fidelity registers them, from files of weights: nothing is fetched.

Both see uint8 images through torch-fidelity's own resize (TensorFlow 1's bilinear, no antialias) and normalisation. So FID in
DINOv2's features is its FD-DINOv2. The code of arXiv 2306.04675 resizes with Pillow, and CMMD's with torch's bicubic filter: put
only values of one protocol side by side.

CLIP is OpenAI's file, a TorchScript archive, which is opened only if it is that file by its SHA-256. For DINOv2 torch-fidelity
knows the network over the wire alone (torch.hub: code and weights). Here its place takes timm's, into which every tensor of the
original file has to fit; the position embeddings are brought from 37 x 37 to 16 x 16 patches as the original code does.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iec.errors import WeightsError
from iec.io.files import canonical_hash
from iec.metrics.extractors.features import Arrays, padded
from iec.metrics.extractors.local_weights import WeightsFile

OFFSET = 0.1
"""Added to the number of patches before it is divided, as in DINOv2's code."""
Load = Callable[["Card", Path], nn.Module]


@dataclass(frozen=True)
class Card:
    """name: in torch-fidelity's registry. layer: its word for the features. load: (card, file) -> its extractor. network:
    timm's name for it, where the network comes from there; size: what differs from that.
    """

    name: str
    label: str
    layer: str
    input_size: int
    normalisation: str
    weights: WeightsFile
    load: Load
    network: str = ""
    size: Mapping[str, Any] = field(default_factory=dict)


class Registered:
    """An `iec.metrics.extractors.features.Extractor` with pooled features alone: its spatial ones and logits have no columns.

    Always computes batches of 50, padding a short one, in float32 without TF32, so that an image's features do not depend on
    how many images are scored.
    """

    batch = 50

    def __init__(self, card: Card, device: torch.device | str = "cpu") -> None:
        """Raises `WeightsError` if the file of weights is missing or another one than published."""
        self.card, self.device = card, torch.device(device)
        self.name, self.label = card.name.replace("-", "_"), card.label
        self.path, self.weights_sha256 = card.weights.find()

    @cached_property
    def network(self) -> nn.Module:
        """Loaded when it is first run: not where all features are there already."""
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # the package sets filters for the whole process
                warnings.simplefilter("ignore", FutureWarning)  # it opens TorchScript, which torch gives up
                network = self.card.load(self.card, self.path)
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
            raise WeightsError(
                f"{self.path} does not hold the tensors of {self.card.label}: {error}. Delete it and get it again from "
                f"{self.card.weights.url}"
            ) from error
        return network.eval().requires_grad_(False).to(self.device)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "network": f"torch-fidelity {self.card.name}",
            "weights_sha256": self.weights_sha256,
            "input_size": self.card.input_size,
            "resize": "TensorFlow 1 bilinear, origin at the corner, no antialias",
            "normalisation": self.card.normalisation,
            "pooled": self.card.layer,
            "spatial": None,
            "logits": None,
        }

    @property
    def hash(self) -> str:
        return canonical_hash(self.identity)

    def __call__(self, images: np.ndarray) -> Arrays:
        """uint8 [B <= 50, H, W, 3] -> float32 (pooled [B, d], [B, 0], [B, 0])."""
        (pooled,) = padded(images, self.batch, self.device, self._forward)
        nothing = np.empty((len(pooled), 0), np.float32)
        return pooled, nothing, nothing

    def _forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images.permute(0, 3, 1, 2).contiguous())[0],)


def load_clip(card: Card, path: Path) -> nn.Module:
    """torch-fidelity's extractor with the visual tower of OpenAI's archive."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as registry

    extractor: nn.Module = registry[card.name](card.name, [card.layer], feature_extractor_weights_path=str(path))
    return extractor


def load_dinov2(card: Card, path: Path) -> nn.Module:
    """torch-fidelity's extractor with timm's network in it. Raises what timm and torch do for tensors that do not fit."""
    import timm
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as registry

    registered: Any = registry[card.name]

    class Local(registered):
        def __init__(self, network: nn.Module) -> None:
            FeatureExtractorBase.__init__(self, card.name, [card.layer])  # registered's own would fetch the network
            self.feature_extractor_internal_dtype = torch.float32
            self.model = network

    with torch.device("meta"):  # no random initial weights
        network = timm.create_model(card.network, pretrained=False, img_size=card.input_size, num_classes=0, **card.size)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    tensors.pop("mask_token", None)  # of the training
    patches = network.patch_embed.grid_size[0]  # type: ignore[union-attr, index]
    tensors["pos_embed"] = positions(tensors["pos_embed"], int(patches))
    network.load_state_dict(tensors, strict=True, assign=True)
    local: nn.Module = Local(network)
    return local


def positions(stored: Tensor, patches: int) -> Tensor:
    """The position embeddings [1, 1 + G^2, d] of G x G patches for ``patches`` x ``patches``: bicubic, as DINOv2's code (2023)
    does.
    """
    side = round((stored.shape[1] - 1) ** 0.5)
    if side == patches:
        return stored
    grid = stored[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (patches + OFFSET) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([stored[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _dinov2(letter: str, label: str, network: str) -> Card:
    name = f"dinov2_vit{letter}14"
    return Card(
        f"dinov2-vit-{letter}-14",
        label,
        "dinov2",
        224,
        "(x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)",
        WeightsFile((f"{name}_pretrain.pth",), f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth"),
        load_dinov2,
        network,
    )


def _clip(name: str, label: str, file: str, input_size: int, digest: str) -> Card:
    return Card(
        name,
        label,
        "clip",
        input_size,
        "(x / 255 - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)",
        WeightsFile((file, f"{name}-{digest}.pt"), f"https://openaipublic.azureedge.net/clip/models/{digest}/{file}", digest),
        load_clip,
    )


DINOV2_SMALL = _dinov2("s", "DINOv2 ViT-S/14", "vit_small_patch14_dinov2")
DINOV2_LARGE = _dinov2("l", "DINOv2 ViT-L/14", "vit_large_patch14_dinov2")
CLIP_BASE = _clip(
    "clip-vit-b-32", "CLIP ViT-B/32", "ViT-B-32.pt", 224, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
)
CLIP_LARGE = _clip(
    "clip-vit-l-14-336px",
    "CLIP ViT-L/14@336px",
    "ViT-L-14-336px.pt",
    336,
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
)
