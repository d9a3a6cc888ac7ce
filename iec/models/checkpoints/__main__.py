"""Convert an original checkpoint of the paper's models to safetensors in diffusers' layout, once.

    iec convert ldm_lsun_church                                   # downloads it first
    iec convert ldm_lsun_church --checkpoint lsun_churches.zip
    iec convert ddim_cifar --checkpoint model-790000.ckpt --output /data/ddim_cifar

``python -m iec convert`` and ``python scripts/convert_checkpoint.py`` are the same command. The folder is
~/.cache/iec/models/NAME (or that of the environment variable IEC_MODELS), where model=NAME finds it; one elsewhere is used with
model.weights=DIR. The pickle inside is read by code that cannot run what it names. Every tensor must be known and every parameter
filled; a file that is damaged or belongs to another model is refused, and nothing is left behind.
"""

import argparse
import json
import logging
from pathlib import Path

from iec.errors import ConfigError
from iec.io.files import require_folder
from iec.io.paths import user_path
from iec.io.runtime import command_parser, entry_point
from iec.models.cards import Card, card, card_names
from iec.models.checkpoints.convert import convert, require_new
from iec.models.checkpoints.source import download
from iec.models.files import models_folder


def arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("name", choices=[name for name in card_names() if card(name).original], help="the model's card")
    parser.add_argument("--checkpoint", type=user_path, help="the file as published (default: download it)")
    parser.add_argument("--output", type=user_path, help="a new folder (default: where model=NAME looks)")
    return parser.parse_args()


def download_of(model: Card) -> Path:
    """The card's file, in ``downloads`` beside the converted models, where it stays."""
    if model.original is None:
        raise ConfigError(f"{model.name} has no original checkpoint.")
    return download(model.original, models_folder() / "downloads" / model.name)


def main() -> None:
    """See the module's docstring."""
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = card(args.name)
    output = args.output or models_folder() / args.name
    require_new(output)  # before a download of gigabytes
    require_folder(output.parent, "--output DIR")
    convert(model, args.checkpoint or download_of(model), output)
    source = json.loads((output / "source.json").read_text())
    if model.original and model.original.sha256 is None:
        print(f"{source['file']}: {source['size']} bytes, sha256 {source['sha256']} (the card does not know this hash)")
    print(
        f"{output}: {', '.join(model.components)}. Use it: model={args.name}" + (f" model.weights={output}" if args.output else "")
    )


if __name__ == "__main__":
    with entry_point():
        main()
