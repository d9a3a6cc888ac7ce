"""From the authors' checkpoint to a folder in diffusers' pipeline layout: strictly, safely, and either whole or not at all."""

import json
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iec.errors import ConfigError, StoreError, WeightsError
from iec.io.files import write_text
from iec.models.architecture import build
from iec.models.cards import Card, Component, Original
from iec.models.checkpoints.names import ALPHAS, AVERAGED, SCALE_FACTOR, Origin, is_ignored, origins
from iec.models.checkpoints.reader import Checkpoint, open_checkpoint
from iec.models.checkpoints.source import check, expected, take_member
from iec.models.checkpoints.writer import save_tensors
from iec.models.files import CONFIG, weights_name
from iec.models.text import save_tokenizer

SHOWN = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A component to be written. module: on the meta device. config: the text of its config.json."""

    component: Component
    module: nn.Module
    config: str
    origins: Mapping[str, Origin]


def convert(card: Card, checkpoint: Path, output: Path) -> None:
    """Write the model of ``card`` to the new folder ``output``, from its original checkpoint or the archive that holds it.

    Every tensor of the file is used, or is known to be no part of the model; every parameter is filled once; shapes and the noise
    schedule are those of the card; dtypes stay as stored. Only one tensor is in memory at a time. The folder appears when it is
    complete: FOLDER/NAME/config.json and its safetensors for each component, tokenizer/ for a text model, source.json.
    Raises `ConfigError` for a model without an original, `StoreError` and `WeightsError`.
    """
    original = card.original
    if original is None:
        raise ConfigError(f"{card.name} has no original checkpoint; its weights come with the package.")
    require_new(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent) as temporary:
            folder = Path(temporary) / "model"
            _convert(card, original, checkpoint, folder)
            folder.rename(output)
    except OSError as error:
        raise StoreError(
            f"Cannot write {output}: {error.strerror or error}. Free space or give another --output DIR; nothing was left there."
        ) from error
    except WeightsError as error:
        raise WeightsError(f"{error}\n{expected(original)}") from error


def require_new(output: Path) -> None:
    """Raises `StoreError` for a folder that exists."""
    if output.exists():
        raise StoreError(f"{output} exists already. Remove it to convert again, or give another --output DIR.")


def _convert(card: Card, original: Original, path: Path, folder: Path) -> None:
    path = take_member(original, path, folder.parent)
    fingerprint = check(original, path)
    source = open_checkpoint(path)
    if source.stubs:
        log.info("left out, not imported: %s", ", ".join(sorted(source.stubs)))
    parts = plan(card, original, source)
    record = {**asdict(fingerprint), "model": card.name, **{k: getattr(original, k) for k in ("url", "member", "layout", "ema")}}
    for part in parts:
        log.info("writing %s", part.component.name)
        # the hash alone: the same weights under another name, or from elsewhere, are the same model
        _write(part, source, folder / part.component.name, {"format": "pt", "source_sha256": fingerprint.sha256})
    if "text_encoder" in card.components:
        save_tokenizer(folder / "tokenizer")
    _write_text(folder / "source.json", json.dumps(record, indent=2) + "\n")


def plan(card: Card, original: Original, source: Checkpoint) -> list[Part]:
    """Where everything comes from. Raises `WeightsError` for a file that is not the card's model, before any weights are read."""
    averaged = any(name.startswith(AVERAGED + "diffusion_model") for name in source.tensors)
    if averaged != original.ema:
        has, wants = ("holds", "none") if averaged else ("does not hold", "them")
        raise WeightsError(f"{source.path} {has} averaged weights ({AVERAGED}*), the card of {card.name} expects {wants}.")
    parts = [_part(component, original, _completed(component, card, source)) for component in card.components.values()]
    _check_tensors(original, source, parts)
    _check_schedule(card, source)
    return parts


def _part(component: Component, original: Original, config: dict[str, Any]) -> Part:
    module: Any = build(component, config, device="meta")
    if component.kind == "Embedding":
        text = json.dumps(config, indent=2) + "\n"
    else:
        text = module.config.to_json_string() if component.kind == "CLIPTextModel" else module.to_json_string()
    return Part(component, module, text, origins(original.layout, component, module, original.ema))


def _completed(component: Component, card: Card, source: Checkpoint) -> dict[str, Any]:
    """The component's configuration, with the scaling factor that the file has. LDM: z = scale_factor x encoding."""
    config = dict(component.config)
    if component is not card.decoder or SCALE_FACTOR not in source.tensors:
        if config.get("scaling_factor", 1) is None:
            raise WeightsError(f"{source.path} has no {SCALE_FACTOR}, which {card.name} needs.")
        return config
    stored = source.read(SCALE_FACTOR)
    value, known = float(stored) if stored.numel() == 1 else math.nan, config.get("scaling_factor")
    rounding = _rounding(stored.dtype)
    if not 0 < value < math.inf or (known is not None and not math.isclose(value, known, rel_tol=max(1e-6, rounding))):
        raise WeightsError(f"{source.path}: {SCALE_FACTOR} is {value}, not {known or 'a positive number'}.")
    rounded = known is not None and rounding > _rounding(torch.float32)
    return config | {"scaling_factor": known if rounded else value}


def _rounding(dtype: torch.dtype) -> float:
    """The relative distance between neighbouring numbers: what a value may have moved by when it was stored."""
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _check_tensors(original: Original, source: Checkpoint, parts: list[Part]) -> None:
    """Names, shapes and dtypes."""
    problems, used = [], set()
    for part in parts:
        for name, parameter in part.module.state_dict().items():
            origin = part.origins[name]
            used.add(origin.name)
            stored, expected = source.tensors.get(origin.name), origin.shape(parameter.shape)
            if stored is None:
                problems.append(f"no {origin.name}")
            elif stored.shape != expected:
                problems.append(f"{origin.name} {list(stored.shape)}, not {list(expected)}")
            elif not stored.dtype.is_floating_point:
                problems.append(f"{origin.name} of {stored.dtype}")
        if original.ema:  # the weights before averaging, by the same names
            used |= {origin.name for origin in origins(original.layout, part.component, part.module, ema=False).values()}
    problems += [f"unknown {name}" for name in source.tensors if name not in used and not is_ignored(original.layout, name)]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise WeightsError(f"{source.path} does not fit the card: {'; '.join(problems[:SHOWN])}{more}.")


def _check_schedule(card: Card, source: Checkpoint) -> None:
    """The noise schedule that the network was trained with, where the file has it."""
    if ALPHAS not in source.tensors:
        return
    stored, expected = source.read(ALPHAS), card.schedule.abar
    tiny = torch.finfo(stored.dtype).smallest_normal if stored.dtype.is_floating_point else 0.0  # below it float16 is coarser
    rtol, atol = max(1e-4, _rounding(stored.dtype)), tiny * _rounding(stored.dtype)
    if stored.shape != expected.shape or not np.allclose(stored.double().numpy(), expected, rtol=rtol, atol=atol):
        raise WeightsError(f"{source.path} was trained with another noise schedule than {card.schedule}: see its {ALPHAS}.")


def _write(part: Part, source: Checkpoint, folder: Path, metadata: Mapping[str, str]) -> None:
    shapes = {name: parameter.shape for name, parameter in part.module.state_dict().items()}
    kinds = {name: (source.tensors[origin.name].dtype, shapes[name]) for name, origin in part.origins.items()}

    def read(name: str) -> Tensor:
        return part.origins[name].extract(source.read(part.origins[name].name), shapes[name])

    _write_text(folder / CONFIG, part.config)
    save_tensors(folder / weights_name(part.component), kinds, read, metadata)


def _write_text(path: Path, text: str) -> None:
    write_text(path, text)
