"""Where the weights of a model are, and strict loading: every tensor of the file is used, every parameter is filled.

A model is a folder in diffusers' pipeline layout: ``unet/config.json``, ``unet/diffusion_pytorch_model.safetensors`` ...; a model
that is a UNet alone may lie in the folder itself. Only safetensors are opened here; pickled checkpoints go through ``iec convert``.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from iec.errors import WeightsError
from iec.io.files import canonical_hash, sha256
from iec.io.filetypes import mistaken
from iec.io.hub import hub_folder
from iec.io.paths import user_path
from iec.models.architecture import differences
from iec.models.cards import FOLDER, Card, Component
from iec.models.files import CONFIG, PICKLES, WEIGHTS, config_files, models_folder, weights_files, weights_name
from iec.models.instructions import Place, get, missing

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
RENAMED = (
    (r"^text_model\.", ""),
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
"""Names of earlier releases of transformers and diffusers, which files on the hub still have."""
IGNORED = {"text_model.embeddings.position_ids", "embeddings.position_ids"}
"""A buffer 0 .. 76 that older releases stored."""
WRITTEN_BY = ("_diffusers_version", "_name_or_path", "transformers_version")
"""What a configuration says of its own history."""


def find(card: Card, weights: Path | str | None = None) -> Path:
    """The folder of a model's weights, complete. Raises `WeightsError` with the way to get them.

    weights: a local folder, ``hub`` for the card's repository, or the id of another repository in diffusers' layout; None: what the
    package carries, or what was converted into `models_folder`.
    """
    folder = _folder(card, weights)
    for component in card.components.values():
        home = component_folder(card, folder, component)
        for name in config_files(component):
            if not (home / name).is_file():
                raise WeightsError(missing(card, component, home / name, _place(weights)))
        files = weights_files(home, component)
        if not files:
            raise WeightsError(missing(card, component, home / weights_name(component), _place(weights)))
        for file in files:
            if sentence := mistaken(file):
                raise WeightsError(sentence)
        if component.config and (conflicts := differences(component, config_of(card, folder, component))):
            raise WeightsError(
                f"{home / CONFIG} is not the {component.name} of {card.name}: {'; '.join(conflicts)}. These are the weights of "
                f"another model. {get(card)}"
            )
    return folder


def _place(weights: Path | str | None) -> Place:
    """Where ``weights`` points to."""
    if weights is None:
        return "default"
    return "hub" if _is_hub_id(str(weights)) else "folder"


def _folder(card: Card, weights: Path | str | None) -> Path:
    if weights is None:
        return FOLDER / card.packaged.folder if card.packaged else models_folder() / card.name
    given = str(weights)
    for wrong, reason in card.wrong.items():
        if given.rstrip("/").endswith(wrong) or wrong.replace("/", "--") in given:  # so the hub's cache calls its folders
            raise WeightsError(f"{given} is not {card.name}: it {reason}. {get(card)}")
    if _is_hub_id(given):
        return _from_hub(card, given)
    path = user_path(given)
    if path.is_file() or (path.suffix in PICKLES and not path.is_dir()):
        raise WeightsError(
            f"model.weights={given} is a file; a model is a folder of safetensors. Convert the checkpoint once:\n"
            f"    python -m iec convert {card.name} --checkpoint {given}"
        )
    return path


def _is_hub_id(given: str) -> bool:
    return given == "hub" or (HUB_ID.fullmatch(given) is not None and not Path(given).exists())


def _from_hub(card: Card, given: str) -> Path:
    if given != "hub":
        return hub_folder(given, None, _patterns(card), "model.weights=DIR")
    if card.hub is None:
        raise WeightsError(f"No hub repository is known to hold the weights of {card.name}. {get(card)}")
    return hub_folder(card.hub.repository, card.hub.revision, _patterns(card), "model.weights=DIR")


def _patterns(card: Card) -> list[str]:
    """Of the files that are read, and no others."""
    single = [CONFIG, WEIGHTS] if len(card.components) == 1 else []
    folders = [f"{c.name}/{name}" for c in card.components.values() for name in (CONFIG, weights_name(c))]
    return single + folders + (["tokenizer/*"] if "text_encoder" in card.components else [])


def component_folder(card: Card, folder: Path, component: Component) -> Path:
    """FOLDER/unet, or FOLDER itself for a model of one component that has no such folder."""
    home = folder / component.name
    return home if home.is_dir() or len(card.components) > 1 else folder


def config_of(card: Card, folder: Path, component: Component) -> dict[str, Any]:
    """The configuration beside the weights. Raises `WeightsError` for one that is not JSON."""
    path = component_folder(card, folder, component) / CONFIG
    if not config_files(component):
        return dict(component.config)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(mistaken(path) or f"{path} is not a configuration ({error}). Fetch it again.") from error


def digest(card: Card, folder: Path) -> str:
    """Identity of the weights: sha256 of a single file, or of the list of all of them (a component in shards is a list, too). The
    configurations of a folder that the package does not carry are part of it: equal tensors under another one are another model.

    Raises `WeightsError` if packaged weights are damaged.
    """
    files = {c.name: weights_files(component_folder(card, folder, c), c) for c in card.components.values()}
    hashes = [_component_hash(paths) for paths in files.values()]
    value = hashes[0] if len(hashes) == 1 else canonical_hash(dict(zip(card.components, hashes, strict=True)))
    if card.packaged and is_packaged(card, folder):
        if value != card.packaged.sha256:
            (file,) = files["unet"]
            raise WeightsError(
                f"{file} is damaged: {file.stat().st_size} bytes with sha256 {value}, expected {card.packaged.sha256}. "
                "Restore it: git checkout (or git lfs pull) in a clone, or install the package again."
            )
        return value
    return f"{value}-{configuration_hash(card, folder)}"


def is_packaged(card: Card, folder: Path) -> bool:
    """Whether it is the folder that the package carries."""
    return card.packaged is not None and folder == FOLDER / card.packaged.folder


def configuration_hash(card: Card, folder: Path) -> str:
    """Of the configurations in a folder, whichever version of a library wrote them; 16 digits."""
    configurations = [config_of(card, folder, c) for c in card.components.values() if config_files(c)]
    return canonical_hash([{k: v for k, v in values.items() if k not in WRITTEN_BY} for values in configurations])[:16]


def _component_hash(files: tuple[Path, ...]) -> str:
    hashes = [_sha256(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashes[0] if len(hashes) == 1 else canonical_hash(hashes)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    """Once for a file that stays as it is: several gigabytes take their time."""
    return sha256(path)


def fill(module: nn.Module, files: Sequence[Path], dtype: torch.dtype, device: torch.device) -> None:
    """Put the tensors of safetensors files into ``module`` (which may be on the meta device), one by one.

    Beside the module's own weights only one tensor is held. Raises `WeightsError` for a damaged file and for tensors that are
    missing, left over, stored twice or of another shape.
    """
    state: dict[str, Tensor] = {}
    with ExitStack() as opened:
        sources = {file: opened.enter_context(_opened(file)) for file in files}
        homes = [(_current_name(n), n, file) for file, source in sources.items() for n in source.keys() if n not in IGNORED]  # noqa: SIM118  # not a dict
        shapes = {name: torch.Size(sources[file].get_slice(stored).get_shape()) for name, stored, file in homes}
        problems = _misfits({name: value.shape for name, value in module.state_dict().items()}, shapes)
        problems += [f"{name} twice" for name, times in Counter(name for name, _, _ in homes).items() if times > 1]
        if problems:
            shown = "; ".join(sorted(problems)[:5])
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise WeightsError(f"{files[0]} does not fit the architecture of {files[0].with_name(CONFIG)}: {shown}{more}.")
        for name, stored, file in homes:
            tensor = sources[file].get_tensor(stored)
            state[name] = tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
    module.load_state_dict(state, strict=True, assign=True)


def _misfits(expected: Mapping[str, torch.Size], stored: Mapping[str, torch.Size]) -> list[str]:
    """Name -> shape of the module's tensors and of the file's: what differs."""
    common = expected.keys() & stored.keys()
    return [
        *(f"no {name}" for name in expected.keys() - stored.keys()),
        *(f"unknown {name}" for name in stored.keys() - expected.keys()),
        *(f"{n} {list(stored[n])}, not {list(expected[n])}" for n in common if stored[n] != expected[n]),
    ]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as source:
            yield source
    except SafetensorError as error:
        size = file.stat().st_size
        raise WeightsError(
            mistaken(file) or f"{file} is truncated or not a safetensors file ({size} bytes: {error}). Fetch it again."
        ) from error


def _current_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
