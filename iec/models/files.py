"""The files of a component in a folder of diffusers' layout: its configuration, and its weights, which may be sharded."""

import json
import os
from pathlib import Path

from iec.errors import WeightsError
from iec.io.filetypes import mistaken
from iec.io.paths import user_path
from iec.models.cards import Component

CONFIG, WEIGHTS, TEXT_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors", "model.safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".zip")
VARIANTS = ("fp16", "bf16")
"""Endings of weights that are the same ones, rounded. Others are other weights (``non_ema``)."""


def models_folder() -> Path:
    """Where converted models are kept: ``$IEC_MODELS``, or ~/.cache/iec/models."""
    return user_path(os.environ.get("IEC_MODELS") or "~/.cache/iec/models")


def weights_name(component: Component) -> str:
    return TEXT_WEIGHTS if component.kind == "CLIPTextModel" else WEIGHTS


def config_files(component: Component) -> tuple[str, ...]:
    return () if component.kind == "Embedding" else (CONFIG,)


def weights_files(home: Path, component: Component) -> tuple[Path, ...]:
    """What holds the weights of a component in its folder ``home``: one file, else its only variant in half precision, else the
    shards of its index. Empty if there are none. Raises `WeightsError` for an index that is damaged or names what is not there.
    """
    whole = home / weights_name(component)
    if whole.is_file():
        return (whole,)
    variants = [path for variant in VARIANTS if (path := whole.with_suffix(f".{variant}.safetensors")).is_file()]
    if len(variants) == 1:
        return (variants[0],)
    index = whole.with_name(whole.name + ".index.json")
    return _shards(index) if index.is_file() and not variants else ()


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        shards = tuple(index.parent / name for name in sorted(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(mistaken(index) or f"{index} is no index of shards. Fetch it again.") from error
    if strange := [path for path in shards if path.parent != index.parent]:
        raise WeightsError(f"{index} names {strange[0]}, outside its folder. Fetch it again.")
    if absent := [path.name for path in shards if not path.is_file()]:
        raise WeightsError(f"{index} names {', '.join(absent)}, not in its folder. Fetch what is missing.")
    return shards


def instead(home: Path, component: Component) -> str:
    """What a folder has in place of the weights, and what to do with it; empty if it has nothing of the kind."""
    pickles = sorted(path.name for path in home.glob("*") if path.suffix in PICKLES)
    others = sorted(path.name for path in home.glob("*.safetensors"))
    if others:
        return f" There is {', '.join(others)}: rename the one you mean to {weights_name(component)}."
    if not pickles:
        return ""
    text = f" There is {pickles[0]}, a pickle, which is not opened."
    if pickles[0] not in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        return text
    library = "transformers" if component.kind == "CLIPTextModel" else "diffusers"
    return (
        f"{text} If you trust where it is from, write it as safetensors:\n"
        f"    python -c \"from {library} import {component.kind} as M; M.from_pretrained('{home}').save_pretrained('{home}')\"\n"
    )
