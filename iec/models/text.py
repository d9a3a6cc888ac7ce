"""Text to embeddings: CLIP's tokenizer and text model as Stable Diffusion v1 uses them, through transformers.

The tokenizer's files are not in ``sd-v1-4.ckpt``. They follow from the byte-pair table of the original CLIP, which the package
open-clip-torch carries; nothing is downloaded. Unlike the original CLIP's, transformers' tokenizer (5.x) does not repair the text
first (package ftfy, HTML entities): a curly quote, a ligature or ``&amp;`` gives other tokens, as does the name of a special token.
"""

import gzip
import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iec.errors import WeightsError
from iec.io.files import write_text

if TYPE_CHECKING:
    from transformers import CLIPTokenizer  # its import takes a second: only a text model pays for it

TABLE = "bpe_simple_vocab_16e6.txt.gz"
TABLE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 48894
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77
log = logging.getLogger(__name__)


class TextEncoder:
    """Texts -> last hidden states [n, 77, width], after the final layer norm (FrozenCLIPEmbedder of CompVis/stable-diffusion,
    ldm/modules/encoders/modules.py): start token, text, end tokens up to 77; a longer text is cut, which is logged.
    """

    def __init__(self, model: Any, tokenizer: "CLIPTokenizer") -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 16) -> Tensor:
        """On the model's device, in its dtype."""
        device = next(self.model.parameters()).device
        ids = self.tokens(texts).to(device)
        return torch.cat([self.model(part).last_hidden_state for part in ids.split(batch_size)])

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """int64 [n, 77]."""
        for text in texts:
            length = len(self.tokenizer(text, verbose=False)["input_ids"])
            if length > TOKENS:
                log.warning("note: a prompt of %d tokens is cut to %d: %.60s...", length, TOKENS, text)
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        return self.tokenizer(list(texts), **options)["input_ids"]


def load_tokenizer(folder: Path | None = None) -> "CLIPTokenizer":
    """The one of the byte-pair table. ``folder``, ``tokenizer`` of a diffusers pipeline, has to hold the same: the identity of a
    model does not cover it. Raises `WeightsError`.
    """
    if folder is not None:
        _require_same(folder)
    return _own_tokenizer()


def _require_same(folder: Path) -> None:
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder} has no {' and no '.join(missing)}. Remove the folder: the tokenizer is then made anew.")
    try:
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} cannot be read ({error}). Remove the folder: the tokenizer is then made anew.") from error
    if (vocab, [line for line in lines if line and not line.startswith("#version")]) != vocabulary():
        raise WeightsError(f"{folder} is not CLIP's tokenizer. Remove the folder: the tokenizer is then made anew.")


@cache
def _own_tokenizer() -> "CLIPTokenizer":
    return _tokenizer(*vocabulary())


def save_tokenizer(folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` as openai/clip-vit-large-patch14 has them, and the configuration with them."""
    vocab, merges = vocabulary()
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "model_max_length": TOKENS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    contents = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name, text in contents.items():
        write_text(folder / name, text)


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's 49,408 tokens and 48,894 merges. Raises `WeightsError` if the table is missing or another one.

    Tokens: the 256 bytes as printable characters, the same at the end of a word, one for each merge, start and end
    (clip/simple_tokenizer.py of openai/CLIP).
    """
    way_out = "Install it again:  pip install --force-reinstall --no-deps open-clip-torch"
    try:
        data = (files("open_clip") / TABLE).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise WeightsError(f"The tokenizer's table {TABLE} of the package open-clip-torch is not installed. {way_out}") from error
    if hashlib.sha256(data).hexdigest() != TABLE_SHA256:
        raise WeightsError(f"{TABLE} of the package open-clip-torch is not the known one (sha256 {TABLE_SHA256}). {way_out}")
    merges = gzip.decompress(data).decode("utf-8").split("\n")[1 : MERGES + 1]
    alphabet = _alphabet()
    tokens = [*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(merge.split()) for merge in merges), START, END]
    return {token: k for k, token in enumerate(tokens)}, merges


def _alphabet() -> list[str]:
    """A printable character for each byte: itself where it is printable, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + k) for k in range(others)]


def _tokenizer(vocab: dict[str, int], merges: list[str]) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    pairs: Any = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=TOKENS)
