"""Captions of COCO, from its annotations file."""

import json
from pathlib import Path

from iec.errors import DatasetError

COCO_CAPTIONS = 5000
COCO_WAY_OUT = (
    "Fetch http://images.cocodataset.org/annotations/annotations_trainval2014.zip and unpack annotations/captions_val2014.json."
)


def load_coco_captions(path: Path, count: int = COCO_CAPTIONS) -> list[tuple[str, str]]:
    """(image file, caption) of ``count`` images of COCO's captions_val2014.json: in ascending order of image id, each with its
    caption of lowest id, white space made single.

    The released script takes captions in an order that it shuffles without a seed, so no list of them can be made again. Raises
    `DatasetError` when the file is missing, damaged, or has fewer images.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in facts["images"]}
        captions = {a["image_id"]: a["caption"] for a in sorted(facts["annotations"], key=lambda a: -a["id"])}
        pairs = [(files[image], " ".join(captions[image].split())) for image in sorted(captions)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is missing or no file of captions ({error!r}). {COCO_WAY_OUT}") from error
    if len(pairs) < count:
        raise DatasetError(f"{path} has captions of {len(pairs)} images, not {count}. {COCO_WAY_OUT}")
    return pairs[:count]
