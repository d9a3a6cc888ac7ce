"""What image n is conditioned on: a pure function of n, whatever the batch, the order or the number of images."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iec.models.prompts import PromptList
from iec.models.text import TextEncoder

CLASSES = 1000
STRIDE = 619
"""Coprime to 1000 and near 1000 / golden ratio, so that a few images in a row are of classes far apart."""


def label(n: int) -> int:
    """The class of image n, (619 n) mod 1000: each class once in every 1,000 images in a row, 50 times in 50,000.

    The official script goes through the classes in order, 50 images each, which makes inception scores over chunks of the file
    meaningless, and other published runs draw labels at random, which costs FID (5.1 against 4.3 in one report).
    """
    return STRIDE * n % CLASSES


class Conditioner(Protocol):
    """Gives the conditioning that a guided network takes."""

    def branches(self, indices: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """[B, 2, tokens, width], or [B, 2] of labels: the unconditional and the conditional branch of each image."""
        ...


def label_pairs(indices: Sequence[int], device: torch.device) -> Tensor:
    """int64 [B, 2]: the unconditional class, 1000, and the class of each image."""
    return torch.tensor([[CLASSES, label(n)] for n in indices], device=device)


class LabelNumbers:
    """Numbers of classes, for a network that embeds them itself (DiT)."""

    @staticmethod
    def fingerprint() -> dict[str, Any]:
        """JSON values: what the conditioning depends on, beside the weights."""
        return {"kind": "labels", "stride": STRIDE, "classes": CLASSES}

    def branches(self, indices: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        return label_pairs(indices, device)


class ClassLabels(LabelNumbers):
    """Entries of a class table [1001, width], one token each; class 1000 is the unconditional one (LDM's cin256-v2)."""

    def __init__(self, table: nn.Embedding) -> None:
        self.table = table

    @torch.no_grad()
    def branches(self, indices: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.table(label_pairs(indices, self.table.weight.device))[:, :, None].to(device, dtype)


class Prompts:
    """Embeddings of prompt n mod (number of prompts), and of the empty text."""

    def __init__(self, encoder: TextEncoder, prompts: PromptList) -> None:
        self.encoder, self.prompts = encoder, prompts
        self._empty: Tensor | None = None

    @staticmethod
    def fingerprint(prompts: PromptList) -> dict[str, Any]:
        """JSON values: what the conditioning depends on, beside the weights."""
        return {"kind": "prompts", "prompts": prompts.hash}

    @torch.no_grad()
    def branches(self, indices: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        if self._empty is None:
            self._empty = self.encoder([""])
        texts = self.encoder([self.prompts.of(n) for n in indices])
        return torch.stack([self._empty.expand_as(texts), texts], dim=1).to(device, dtype)
