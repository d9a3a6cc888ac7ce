"""CLIP score: do the images show what their captions say? (arXiv 2104.08718)

    CLIP score = 100 mean_n cos( image embedding of n, text embedding of n )

Image n belongs to caption n. As in https://github.com/Taited/clip-score the cosine is not clamped at 0 and the factor is 100; the
paper above has 2.5 and a clamp. The value depends on the backbone far more than on the images, so the backbone is part of the
score's label.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iec.errors import MetricError, WeightsError
from iec.io.files import canonical_hash, sha256
from iec.io.float32 import without_tf32
from iec.io.hub import hub_folder
from iec.io.paths import user_path
from iec.metrics.extractors.features import regroup
from iec.metrics.interval import Interval
from iec.metrics.scores import Score

BACKBONE = "openai/clip-vit-large-patch14"
FILES = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.json", "merges.txt")
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that OpenAI's and LAION's models were trained on, R, G, B in 0 .. 1."""
BATCH, SCALE = 32, 100.0
CLIP = "clip"
"""The score's name."""
HARMLESS = ("position_ids",)
"""A buffer 0, 1, 2 ... that older releases of transformers stored."""


class CLIPScorer:
    """A CLIP model with its tokenizer, in float32. Images and captions are taken in batches of 32, whoever calls."""

    def __init__(self, backbone: Path | str = BACKBONE, device: torch.device | str = "cpu") -> None:
        """backbone: a folder in transformers' layout, or the id of a repository, see `iec.io.hub.hub_folder`.

        Raises `WeightsError` for missing, damaged or unfitting files, with the command that fetches them.
        """
        from transformers import AutoTokenizer, CLIPModel

        local = user_path(backbone)
        self.backbone, self.device = local.name if local.is_dir() else str(backbone), torch.device(device)
        folder = _folder(backbone)
        try:
            load: Any = CLIPModel.from_pretrained
            self.model, loading = load(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises whatever the broken part happens to raise
            raise WeightsError(f"{folder} cannot be read as a CLIP model: {error}. {_way_out(backbone)}") from error
        problems = [*loading["missing_keys"], *loading["mismatched_keys"], *loading["unexpected_keys"]]
        problems = [str(name) for name in problems if not str(name).endswith(HARMLESS)]
        if problems:
            raise WeightsError(
                f"{folder} does not fit its CLIP architecture: {', '.join(sorted(problems)[:5])}. {_way_out(backbone)}"
            )
        self.model.eval().requires_grad_(False).to(self.device)
        self.weights_sha256 = sha256(folder / "model.safetensors")

    @property
    def label(self) -> str:
        return f"CLIP score ({self.backbone.removeprefix('openai/')})"

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "network": self.backbone,
            "weights_sha256": self.weights_sha256,
            "input_size": self._size,
            "resize": "Pillow bicubic",
            "normalisation": f"(x / 255 - {MEAN}) / {DEVIATION}",
            "tokens": f"at most {self._tokens}, truncated",
        }

    @property
    def hash(self) -> str:
        return canonical_hash(self.identity)

    @property
    def _size(self) -> int:
        return int(self.model.config.vision_config.image_size)

    @property
    def _tokens(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def per_image(self, images: np.ndarray | Iterable[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        """100 cos of each pair: images uint8 [N, H, W, 1 or 3] or an iterable of such blocks, N captions; float64 [N].

        Raises `MetricError` unless there is one caption for each image, and for images that are not square uint8.
        """
        parts, done = [], 0
        for batch in regroup(images, BATCH):
            texts = list(captions[done : done + len(batch)])
            done += len(batch)
            if len(texts) == len(batch):
                parts.append(SCALE * self._cosines(batch, texts))
        if done != len(captions) or done == 0:
            raise MetricError(f"{done} images and {len(captions)} captions; the CLIP score needs one caption for each image.")
        return np.concatenate(parts)

    @torch.inference_mode()
    def _cosines(self, images: np.ndarray, captions: list[str]) -> np.ndarray:
        tokens = self.tokenizer(captions, padding="max_length", max_length=self._tokens, truncation=True, return_tensors="pt")
        with without_tf32():
            image = self.model.vision_model(pixel_values=self._pixels(images)).pooler_output
            text = self.model.text_model(**tokens.to(self.device)).pooler_output
            pair = self.model.visual_projection(image), self.model.text_projection(text)
        a, b = (value.cpu().double() for value in pair)
        return torch.nn.functional.cosine_similarity(a, b).numpy()

    def _pixels(self, images: np.ndarray) -> Tensor:
        """uint8 [B, H, H, 3] -> float32 [B, 3, S, S], normalised."""
        size = (self._size, self._size)
        resized = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images])
        x = torch.from_numpy(resized).to(self.device).float() / 255
        return ((x - torch.tensor(MEAN, device=self.device)) / torch.tensor(DEVIATION, device=self.device)).permute(0, 3, 1, 2)


def clip_score(
    images: np.ndarray | Iterable[np.ndarray], captions: Sequence[str], scorer: CLIPScorer, resamples: int = 1000, seed: int = 0
) -> Score:
    """Mean over the pairs, in -100 .. 100, with its bootstrap interval over pairs."""
    values = scorer.per_image(images, captions)
    mean = Interval.of_mean(values, resamples, seed)
    return Score(
        *mean,
        name=CLIP,
        label=scorer.label,
        n=len(values),
        higher_is_better=True,
        interval="bootstrap" if mean.known else "none",
        resamples=resamples,
        seed=seed,
    )


def _folder(backbone: Path | str) -> Path:
    folder = user_path(backbone)
    if not folder.is_dir():
        folder = hub_folder(str(backbone), None, FILES, "metrics.clip=DIR")
    if not (folder / "model.safetensors").is_file():
        raise WeightsError(f"{folder} holds no model.safetensors. {_way_out(backbone)}")
    return folder


def _way_out(backbone: Path | str) -> str:
    name = BACKBONE if user_path(backbone).is_dir() else backbone
    return f"Fetch it:  hf download {name} {' '.join(FILES)}"
