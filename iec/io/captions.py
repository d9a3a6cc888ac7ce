"""Captions of COCO, from its annotations file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iec.errors import DatasetError
from iec.io.text import read_json_text

COCO_CAPTIONS = 5000
COCO_WAY_OUT = (
    "Fetch http://images.cocodataset.org/annotations/annotations_trainval2014.zip and unpack annotations/captions_val2014.json."
)


def load_coco_captions(path: Path, count: int = COCO_CAPTIONS) -> list[tuple[str, str]]:
    """(image file, caption) of ``count`` images of COCO's captions_val2014.json, see `coco_captions`.

    Raises `DatasetError` when the file is missing, damaged, or has fewer images.
    """
    try:
        return coco_captions(read_json_text(path), count)
    except ValueError as error:
        raise DatasetError(f"{path} is no file of captions: {error}. {COCO_WAY_OUT}") from error


def coco_captions(annotations: Any, count: int = COCO_CAPTIONS) -> list[tuple[str, str]]:
    """The first ``count`` in ascending order of image id, each image with its caption of lowest id, white space made single.

    The released script takes captions in an order that it shuffles without a seed, so no list of them can be made again. Raises
    `ValueError` with the reason if ``annotations`` are not COCO's, or too few.
    """
    if not isinstance(annotations, Mapping) or not {"images", "annotations"} <= annotations.keys():
        raise ValueError('it is no object with "images" and "annotations"')
    try:
        files = {image["id"]: image["file_name"] for image in annotations["images"]}
        captions = {a["image_id"]: a["caption"] for a in sorted(annotations["annotations"], key=lambda a: -a["id"])}
        pairs = [(files[image], " ".join(captions[image].split())) for image in sorted(captions)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("its entries are not COCO's: an image has id and file_name, a caption id, image_id and caption") from error
    if len(pairs) < count:
        raise ValueError(f"it has captions of {len(pairs)} images, not {count}")
    return pairs[:count]
