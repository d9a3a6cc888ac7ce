"""Prompts: captions of COCO by a fixed rule, lines of a text file, or a small set of our own."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from iec.errors import ConfigError, DatasetError

OWN = Path(__file__).parent / "prompts.txt"
ANNOTATIONS_URL = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
CAPTIONS, CAPTION_SEED = 5000, 0


@dataclass(frozen=True)
class PromptList:
    """texts: prompt n of image n, from the start again after the last. source: where they come from.

    images: the file that each caption describes, for reference statistics; empty where there are none.
    """

    texts: tuple[str, ...]
    source: str
    images: tuple[str, ...] = ()

    def of(self, n: int) -> str:
        return self.texts[n % len(self.texts)]

    @cached_property
    def hash(self) -> str:
        """sha256 of the texts in order."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def prompts_of(given: str | Path | None = None) -> PromptList:
    """None: our own; ``*.json``: COCO's annotations (`coco_captions`); else a text file, one prompt a line (UTF-8).

    Blank lines at the end of a file are left out; others are refused, because prompt n is line n. Raises `ConfigError` and
    `DatasetError`.
    """
    path = OWN if given is None else Path(given)
    if path.suffix == ".json":
        return coco_captions(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.prompts={path} cannot be read ({error}). Give a text file (UTF-8), one prompt a line.") from error
    blank = [k for k, line in enumerate(lines, 1) if not line]
    if blank or not lines:
        where = f"line {blank[0]} is blank" if blank else "it is empty"
        raise ConfigError(f"model.prompts={path}: {where}. Prompt n is line n: write one prompt a line.")
    return PromptList(tuple(lines), "the package's own" if given is None else path.name)


def coco_captions(path: Path, count: int = CAPTIONS) -> PromptList:
    """``count`` captions of captions_val2014.json: of ``count`` images drawn without replacement, each image's first caption.

    Images sorted by id, ``default_rng(0).choice`` of them in the drawn order; first means the lowest annotation id. Captions are
    stripped, line breaks become spaces. No list of the papers' 5,000 captions is published with a rule, so scores of this set are
    not those of another. Raises `DatasetError` for a file that is missing, is none of COCO's, or has fewer images.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        files = {int(image["id"]): str(image["file_name"]) for image in entry["images"]}
        annotations = sorted(entry["annotations"], key=lambda a: int(a["id"]))
        first = _first_captions(annotations)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} does not exist. Fetch COCO's annotations and unpack them there:\n    {ANNOTATIONS_URL}\n"
            "    (annotations/captions_val2014.json)"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not COCO's captions_val2014.json ({error!r}). Fetch it again: {ANNOTATIONS_URL}") from error
    ids = np.array(sorted(files.keys() & first.keys()))
    if len(ids) < count:
        raise DatasetError(f"{path} has captions of {len(ids)} images; {count} are needed. Fetch the whole file: {ANNOTATIONS_URL}")
    chosen = np.random.default_rng(CAPTION_SEED).choice(ids, size=count, replace=False).tolist()
    return PromptList(tuple(first[k] for k in chosen), f"{count} captions of {path.name}", tuple(files[k] for k in chosen))


def _first_captions(annotations: list[Mapping[str, object]]) -> dict[int, str]:
    """image id -> caption of its lowest annotation id; ``annotations`` in order of their ids."""
    first: dict[int, str] = {}
    for annotation in annotations:
        first.setdefault(int(str(annotation["image_id"])), " ".join(str(annotation["caption"]).split()))
    return first
