"""Reference statistics of real images, which the scores of generated ones compare with.

    python -m iec.metrics.references --data data                                            # CIFAR-10, EfficientNet-Lite0
    python -m iec.metrics.references --dataset fashion_mnist_train --data /usr/share/datasets/fashion-mnist
    python -m iec.metrics.references --dataset lsun_church_256 --data LSUN --protocol inception --workers 8
    python -m iec.metrics.references --dataset imagenet_256 --npz VIRTUAL_imagenet256_labeled.npz --protocol inception
    python -m iec.metrics.references --folder PHOTOS --resolution 256 --filter bicubic --output photos.safetensors
    python -m iec.metrics.references --npz stats.npz --origin pytorch_fid --resolution 32 --protocol pytorch_fid \\
        --output stats.safetensors

An npz with mu and sigma is imported, one with images (arr_0) alone is computed from. The file of a data set goes to
~/.cache/iec/references or the folder of the environment variable IEC_REFERENCES. Killed at any moment, the same command goes on
where it was, and ends with the same bytes; so it does with any number of workers. In a checkout it is also
``python scripts/prepare_reference.py``.
"""

import argparse
import logging
import shlex
from pathlib import Path
from typing import Any

from iec.errors import ArtifactError, ConfigError
from iec.io.paths import require_writable, user_path
from iec.io.progress import reported
from iec.io.runtime import command_parser, entry_point, keep_freed_memory, resolve_device
from iec.metrics.extractors.features import Extractor
from iec.metrics.images.decode import FILTERS, Preprocess
from iec.metrics.images.encoded import open_folder
from iec.metrics.images.npz import ImageArray
from iec.metrics.images.sources import NpzSource, Source
from iec.metrics.protocol import PROTOCOLS, protocol
from iec.metrics.references.catalog import ORIGINS, PACKAGED, dataset, dataset_names, file_name, user_folder
from iec.metrics.references.imported import import_statistics, npz_keys
from iec.metrics.references.prepare import make_reference, open_dataset, opener
from iec.metrics.references.reference import Reference

UNRECORDED = ("workers", "output", "device")
"""Arguments that do not change the result."""


def arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--protocol", default="efficientnet_lite0", choices=PROTOCOLS, help="whose extractor (default: %(default)s)"
    )
    parser.add_argument("--dataset", choices=dataset_names(), help="a known set, below --data (default: cifar10_train) or as --npz")
    parser.add_argument("--data", type=user_path, help="folder of the data set")
    parser.add_argument("--folder", type=user_path, help="folder of PNG, JPEG or WebP files")
    parser.add_argument("--npz", type=user_path, help="images (arr_0) or statistics (mu, sigma, mu_s, sigma_s)")
    parser.add_argument("--origin", choices=ORIGINS, help="tool that wrote the statistics")
    parser.add_argument("--resolution", type=int, help="make images R x R: shorter side to R, centre crop (a data set: its own)")
    parser.add_argument("--filter", choices=FILTERS, help="of the resizing (Pillow; antialiased, but for nearest)")
    parser.add_argument("--crop-first", action="store_true", help="crop to a square, then resize")
    parser.add_argument("--to-rgb", action="store_true", help="convert grey, palette and CMYK images")
    parser.add_argument("--recursive", action="store_true", help="sub-folders of --folder too")
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave out files that cannot be decoded, and record their names"
    )
    parser.add_argument("--compact", action="store_true", help="for FID alone: no other parts, and a tenth of the size")
    parser.add_argument("--limit", type=int, help="the first N images only")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=user_path)
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for arguments that contradict each other."""
    given = [name for name in ("data", "folder", "npz") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ConfigError(f"Give one of --data, --folder and --npz, got {', '.join(f'--{name}' for name in given) or 'none'}.")
    if args.folder and args.dataset:
        raise ConfigError("--folder is a set of your own; a known --dataset takes its images from --data.")
    if args.output is None and not (args.data or args.dataset):
        raise ConfigError("Give --output FILE.safetensors.")
    shaping = args.filter or args.crop_first or args.to_rgb
    if shaping and (not args.folder or (args.resolution is None and (args.filter or args.crop_first))):
        raise ConfigError(
            "--filter, --crop-first and --to-rgb say how --folder becomes --resolution R; data sets have their own way."
        )
    if args.folder and args.resolution and not args.filter:
        raise ConfigError(f"--resolution needs --filter, one of {', '.join(FILTERS)}: scores depend on it.")
    if args.data and args.resolution:
        raise ConfigError("A data set has its own resolution; use --folder for another.")
    if args.npz and (args.recursive or args.skip_damaged):
        raise ConfigError("--recursive and --skip-damaged are about files of images, and an npz is one file. Leave them out.")
    if args.recursive and not args.folder:
        raise ConfigError("--recursive is of --folder; a data set has a layout of its own.")
    if args.npz:
        check_npz(args)
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: at least 1.")


def check_npz(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for arguments that an npz of images, or one of statistics, does not take."""
    if "mu" in npz_keys(args.npz):
        if args.limit is not None:
            raise ConfigError("--limit is of images, and this npz holds statistics. Leave it out.")
        return
    if args.origin is not None:
        raise ConfigError("--origin says which tool wrote statistics, and this npz holds images. Leave it out.")
    if args.resolution is not None:
        raise ConfigError(
            "--resolution does not change images of an npz: they are used as they are. Leave it out, or use --folder."
        )
    resolution = ImageArray.open(args.npz).shape[1]
    if args.dataset and resolution != (expected := dataset(args.dataset).resolution):
        raise ConfigError(f"{args.dataset} has {expected} x {expected} pixels, {args.npz} {resolution}. Leave --dataset out.")


def command_of(args: argparse.Namespace) -> str:
    """The arguments that the result depends on, in one order. It is part of a reference's hash, and so keeps its first words."""
    words = ["python", "scripts/prepare_reference.py"]
    for name, value in vars(args).items():
        if name not in UNRECORDED and value not in (None, False):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def open_source(args: argparse.Namespace) -> Source:
    if args.folder:
        preprocess = Preprocess(args.resolution, args.filter or "bicubic", args.crop_first, args.to_rgb)
        return open_folder(args.folder, args.recursive, preprocess, args.skip_damaged)
    if args.npz:
        return NpzSource(ImageArray.open(args.npz))
    return open_dataset(args.dataset, args.data, skip_damaged=args.skip_damaged)


def import_npz(args: argparse.Namespace, extractor: Extractor, output: Path) -> Reference:
    if output.exists():
        raise ArtifactError(f"{output} exists. Delete it, or choose another --output.")
    known: dict[str, Any] = {"resolution": args.resolution}
    if args.dataset:
        entry = dataset(args.dataset)
        known = {"resolution": entry.resolution, "dataset": entry.title, "n": entry.images}
    total = len(NpzSource(ImageArray.open(args.npz))) if "arr_0" in npz_keys(args.npz) else 0
    with reported("features of arr_0") as report:
        done = 0

        def progress(images: int) -> None:
            nonlocal done
            done += images
            report(done, total)

        reference = import_statistics(args.npz, extractor, args.origin, **known, progress=progress)
    reference = reference.compact() if args.compact else reference
    reference.save(output)
    return reference


def main() -> None:
    args = arguments()
    if args.data and not args.dataset:
        args.dataset = "cifar10_train"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    check(args)
    device = resolve_device(args.device)
    statistics = args.npz is not None and "mu" in npz_keys(args.npz)
    extractor = protocol(args.protocol).extractor(device if statistics else "cpu")
    output = args.output or user_folder() / file_name(args.dataset, extractor.name)
    if not output.is_file():  # an existing one is never replaced
        require_writable(output, "--output FILE.safetensors")
    if statistics:
        reference = import_npz(args, extractor, output)
    else:
        source = open_source(args)
        with reported("features") as report:
            settings = (command_of(args), device, args.workers, args.limit, args.skip_damaged, args.compact, report)
            reference = make_reference(source, opener(args.protocol), output, *settings)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, n = {reference.provenance['n']}, hash {reference.hash[:12]}")
    if not args.output and (PACKAGED / output.name).is_file():
        print(f"The package carries {output.name} itself, and that is used; pass this one's path as --reference to use it instead.")


if __name__ == "__main__":
    with entry_point():
        main()
