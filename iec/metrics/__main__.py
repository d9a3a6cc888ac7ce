"""Scores of anyone's images.

    python -m iec.metrics score FOLDER_OR_NPZ_OR_CELL --reference REF --metrics fid,is,sfid
    python -m iec.metrics protocols

REF: a data set's name (cifar10_train, ...), a file of `python -m iec.metrics.references`, or an npz with mu and sigma.
"""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from iec.errors import ArtifactError, ConfigError, MetricError
from iec.io.files import read_json, write_atomic
from iec.io.paths import require_writable, user_path
from iec.io.progress import reported
from iec.io.runtime import entry_point, keep_freed_memory, resolve_device
from iec.metrics.evaluation import Evaluation
from iec.metrics.extractors.features import Extractor, Features, extract_each
from iec.metrics.images.encoded import open_folder
from iec.metrics.images.npz import ImageArray
from iec.metrics.images.sources import NpzSource, Source, Tally, first
from iec.metrics.protocol import PROTOCOLS, Protocol, protocol
from iec.metrics.references.catalog import ORIGINS, dataset_names
from iec.metrics.references.imported import import_statistics
from iec.metrics.references.reference import Reference, load_reference, reference_path
from iec.metrics.scores import available, require_images
from iec.runs.cell_images import CellSource

log = logging.getLogger(__name__)


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m iec.metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("protocols", help="list the protocols")
    score = commands.add_parser("score", help="score a set of images")
    score.add_argument("images", type=user_path, help="folder of PNG, JPEG or WebP files, npz with arr_0, or a cell's folder")
    score.add_argument(
        "--reference", required=True, metavar="REF", help=f"{', '.join(dataset_names())}, a reference file, or an npz"
    )
    score.add_argument("--protocol", default="inception", choices=PROTOCOLS, help="default: %(default)s")
    score.add_argument(
        "--beside",
        help="other protocols for the same images, p,q,... or none (default: efficientnet_lite0_deep beside efficientnet_lite0, "
        "where REF is a data set that has it)",
    )
    score.add_argument("--metrics", help="fid,is,... (default: the protocol's, as far as the reference has what they need)")
    score.add_argument("--num", type=int, help="the first N images only")
    score.add_argument("--origin", choices=ORIGINS, help="tool that wrote REF, where an npz does not show it")
    score.add_argument("--recursive", action="store_true", help="sub-folders too")
    score.add_argument("--skip-damaged", action="store_true", help="leave out files that cannot be decoded, and record their names")
    score.add_argument("--bootstrap", type=int, default=0, help="resamples for 95 %% intervals (default: none)")
    score.add_argument("--json", type=user_path, metavar="OUT", help="write the record there")
    score.add_argument("--device", default="auto")
    return parser.parse_args(words)


def open_images(path: Path, recursive: bool = False, skip_damaged: bool = False) -> Source:
    """A cell's folder, an npz with images, or a folder of image files. Raises `MetricError` or `StoreError`."""
    if path.suffix.lower() == ".npz":
        return NpzSource(ImageArray.open(path))
    if (path / "cell.json").is_file():
        return CellSource.open(path)
    return open_folder(path, recursive, skip_damaged=skip_damaged)


def open_reference(name: str, extractor: Extractor, resolution: int, origin: str | None) -> Reference:
    """A data set's, a reference file's, or that of an npz of statistics (without KID, precision and recall, for which its images
    would have to go through the extractor each time). Raises `ArtifactError`, or `ConfigError` for no such thing."""
    if name in dataset_names():
        return load_reference(reference_path(name, extractor), extractor, resolution)
    path = user_path(name)
    if not path.is_file():
        raise ConfigError(f"--reference {name} is neither a file nor one of {', '.join(dataset_names())}.")
    if path.suffix.lower() == ".npz":
        return import_statistics(path, extractor, origin, resolution, images=False)
    return load_reference(path, extractor, resolution)


def choose(requested: str | None, evaluation: Protocol, reference: Reference) -> tuple[str, ...]:
    """Names of the scores. Raises `ConfigError` for what the protocol, or the reference, cannot give."""
    if requested is None:
        return available(evaluation.default, reference)
    names = tuple(requested.split(","))
    evaluation.check(names)
    lacking = [name for name in names if name not in available(names, reference)]
    if lacking:
        raise ConfigError(
            f"The reference does not hold what {', '.join(lacking)} compares with. Leave it out of --metrics, or make a reference "
            "of the real images or of the npz first:  python -m iec.metrics.references"
        )
    return names


def evaluations_of(args: argparse.Namespace, device: torch.device, resolution: int) -> list[Evaluation]:
    """The protocol's, then those beside it; default ones only where their reference is there. Raises any `IECError` of theirs."""
    main = protocol(args.protocol)
    if args.beside is None:
        beside = [name for name in main.beside if args.reference in dataset_names()]
    else:
        beside = [] if args.beside == "none" else args.beside.split(",")
    if len({main.name, *beside}) <= len(beside):
        raise ConfigError(f"--beside {args.beside} names a protocol twice, or {main.name} itself. Name each other one once.")
    evaluations = []
    for name in (main.name, *beside):
        rules, requested = protocol(name), args.metrics if name == main.name else None
        extractor = rules.extractor(device)
        try:
            reference = open_reference(args.reference, extractor, resolution, args.origin)
        except ArtifactError as error:
            if name == main.name or args.beside is not None:
                raise
            log.warning("note: no scores of %s. %s", name, error)
            continue
        names = choose(requested, rules, reference)
        evaluations.append(Evaluation(rules, extractor, reference, names, list(names)))
    return evaluations


def number_of_images(source: Source, num: int | None) -> int:
    """The first ``num`` images, or all. Raises `MetricError` when there are fewer."""
    if len(source) < 2:
        raise MetricError(f"{source.label}: {len(source)} image(s) cannot be scored; use at least 2.")
    count = len(source) if num is None else num
    if not 2 <= count <= len(source):
        raise MetricError(f"{count} of {len(source)} images cannot be scored; choose 2 .. {len(source)} (--num N).")
    return count


def features_of(
    source: Source, extractors: Sequence[Extractor], count: int, skipped: list[str] | None
) -> tuple[list[Features], Tally]:
    """Features of the first ``count`` images; of those that can be read if damaged ones may be ``skipped``."""
    tally = Tally()
    with reported("features") as report:
        report(0, count)
        done = 0

        def progress(images: int) -> None:
            nonlocal done
            done += images
            report(done, count)

        return extract_each(tally.of(first(source.blocks(skipped=skipped), count)), extractors, progress), tally


def score(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the scores as JSON values, with the source, and the records of the protocols beside it, added. Everything that
    can be refused is, before an extractor runs."""
    device = resolve_device(args.device)
    if args.json is not None:
        require_writable(args.json, "--json OUT")
    if args.bootstrap < 0:
        raise ConfigError(f"--bootstrap {args.bootstrap} must not be negative.")
    source = open_images(args.images, args.recursive, args.skip_damaged)
    evaluations = evaluations_of(args, device, source.resolution)
    count = number_of_images(source, args.num)
    for evaluation in evaluations:
        require_images(evaluation.names, count, evaluation.reference, evaluation.protocol.rules)
    skipped: list[str] = []
    extractors = [evaluation.extractor for evaluation in evaluations]
    features, tally = features_of(source, extractors, count, skipped if args.skip_damaged else None)
    if args.num is not None and tally.count != args.num:
        raise MetricError(f"Only {tally.count} of {args.num} images could be read; choose a smaller --num.")
    cell = read_json(args.images / "cell.json") if isinstance(source, CellSource) else {}
    records, notes = [], []
    for evaluation, own in zip(evaluations, features, strict=True):
        scores, said = evaluation.scores(own, args.bootstrap)
        records.append(evaluation.record(scores, cell.get("seed"), tally.sha256).as_dict())
        notes += said
    main = evaluations[0]
    origin = {"label": source.label, "files": len(source), "skipped": skipped, "reference": main.reference.provenance["dataset"]}
    if args.metrics is None and (lacking := [name for name in main.protocol.default if name not in main.names]):
        notes.append(
            f"left out: {', '.join(lacking)}, for which {args.reference} is not enough as it is. A reference that "
            "`python -m iec.metrics.references` makes, from images or an npz that has some, gives them."
        )
    return without_nan(records[0] | {"source": origin, "notes": notes, "beside": records[1:]})


def without_nan(value: Any) -> Any:
    """None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(record: dict[str, Any]) -> str:
    """Markdown: a line a score."""
    lines = [f"| {record['source']['label']} | value | 95 % interval | N |", "|---|---|---|---|"]
    for entry in (entry for own in (record, *record["beside"]) for entry in own["scores"].values()):
        interval = "" if entry["low"] is None else f"{entry['low']:.4g} .. {entry['high']:.4g}"
        lines.append(f"| {entry['label']} | {entry['value']:.6g} | {interval} | {entry['n']} |")
    return "\n".join(lines)


def describe(evaluation: Protocol) -> str:
    """One line: name, what it prints, the scores it gives and can give."""
    more = f"; on request: {', '.join(evaluation.on_request)}" if evaluation.on_request else ""
    return f"{evaluation.name:20} labelled ({evaluation.label}): {', '.join(evaluation.default)}{more}"


def main(words: list[str] | None = None) -> None:
    args = arguments(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "protocols":
        print("\n".join(describe(protocol(name)) for name in PROTOCOLS))
        return
    keep_freed_memory()
    record = score(args)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    print(table(record))
    print("".join(f"note: {note}\n" for note in record["notes"]) + "\n" + text, end="", flush=True)
    if args.json is not None:
        write_atomic(args.json, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    with entry_point():
        main()
