"""Scores of anyone's images.

    python -m iec.metrics score FOLDER_OR_NPZ_OR_CELL --reference REF --metrics fid,is,sfid
    python -m iec.metrics score FOLDER_OR_NPZ_OR_CELL --reference REF --gate "fid<=12.3"       # exit status 1 if it is more
    python -m iec.metrics score FOLDER_OR_NPZ_OR_CELL --gate GATE.yaml                         # see iec/metrics/gate.py
    python -m iec.metrics protocols

REF: a data set's name (cifar10_train, ...), a file of `python -m iec.metrics.references`, or an npz with mu and sigma.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from iec.errors import ArtifactError, ConfigError, MetricError
from iec.io.files import read_json, write_text
from iec.io.paths import require_writable, user_path
from iec.io.progress import reported
from iec.io.runtime import command_parser, entry_point, keep_freed_memory, resolve_device
from iec.metrics.clip_score import CLIP
from iec.metrics.evaluation import Evaluation
from iec.metrics.extractors.features import Extractor, Features, extract_each
from iec.metrics.gate import Gate
from iec.metrics.images.encoded import open_folder
from iec.metrics.images.npz import ImageArray
from iec.metrics.images.sources import NpzSource, Source, Tally, first
from iec.metrics.printed import describe, table, without_nan
from iec.metrics.protocol import PROTOCOLS, Protocol, protocol
from iec.metrics.record import Record
from iec.metrics.references.catalog import ORIGINS, dataset_names
from iec.metrics.references.imported import import_statistics
from iec.metrics.references.reference import Reference, load_reference, reference_path
from iec.metrics.scores import available, require_images
from iec.runs.cell_images import CellSource, stored_clip_score

log = logging.getLogger(__name__)
DEFAULT_PROTOCOL = "inception"


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("protocols", help="list the protocols")
    score = commands.add_parser("score", help="score a set of images")
    score.add_argument("images", type=user_path, help="folder of PNG, JPEG or WebP files, npz with arr_0, or a cell's folder")
    score.add_argument("--reference", metavar="REF", help=f"{', '.join(dataset_names())}, a reference file, or an npz")
    score.add_argument("--protocol", choices=PROTOCOLS, help=f"default: {DEFAULT_PROTOCOL}")
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
    score.add_argument(
        "--gate", action="append", metavar="BOUND", help="NAME<=NUMBER, NAME>=NUMBER or a file of bounds; may be repeated"
    )
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


def choose(requested: str | None, rules: Protocol, reference: Reference) -> tuple[str, ...]:
    """Names of the scores. Raises `ConfigError` for what the protocol, or the reference, cannot give."""
    if requested is None:
        return available(rules.default, reference)
    names = tuple(requested.split(","))
    rules.check(names)
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


def settled(args: argparse.Namespace, gate: Gate) -> argparse.Namespace:
    """With what the gate states in place of what is not given. Raises `ConfigError` where they differ, and for no reference."""
    settings = gate.settings(protocol=args.protocol, reference=args.reference)
    if settings["reference"] is None:
        raise ConfigError("There is nothing to compare with: give --reference REF, or a --gate file that states one.")
    return argparse.Namespace(**vars(args) | settings | {"protocol": settings["protocol"] or DEFAULT_PROTOCOL})


def records_of(
    evaluations: Sequence[Evaluation],
    features: Sequence[Features],
    bootstrap: int,
    seed: int | None,
    sha256: str,
    run: Record | None,
) -> tuple[list[Record], list[str]]:
    """A record of each evaluation, and what there is to say. sha256: of the images. run: the one a CLIP score is taken from."""
    records, notes = [], []
    for evaluation, own in zip(evaluations, features, strict=True):
        scores, said = evaluation.scores(own, bootstrap)
        clip = run if evaluation is evaluations[0] else None
        scores |= {} if clip is None else {CLIP: clip.scores[CLIP]}
        records.append(evaluation.record(scores, seed, sha256, None if clip is None else clip.clip))
        notes += said
    return records, notes


def score(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the scores as JSON values, with the source, the records of the protocols beside it and the verdicts of the gate
    added. Everything that can be refused is, before an extractor runs."""
    device = resolve_device(args.device)
    gate = Gate.read(args.gate or [])
    args = settled(args, gate)
    if args.json is not None:
        require_writable(args.json, "--json OUT")
    if args.bootstrap < 0:
        raise ConfigError(f"--bootstrap {args.bootstrap} must not be negative.")
    source = open_images(args.images, args.recursive, args.skip_damaged)
    evaluations = evaluations_of(args, device, source.resolution)
    count = number_of_images(source, args.num)
    for evaluation in evaluations:
        require_images(evaluation.names, count, evaluation.reference, evaluation.protocol.rules)
    main = evaluations[0]
    run = stored_clip_score(args.images, main.protocol.name, count) if isinstance(source, CellSource) else None
    names = {evaluation.protocol.name: [*evaluation.names] for evaluation in evaluations}
    names[main.protocol.name] += [] if run is None else [CLIP]
    gate.require(names, count, {"extractor_hash": main.extractor.hash, "reference_hash": main.reference.hash})
    skipped: list[str] = []
    extractors = [evaluation.extractor for evaluation in evaluations]
    features, tally = features_of(source, extractors, count, skipped if args.skip_damaged else None)
    if args.num is not None and tally.count != args.num:
        raise MetricError(f"Only {tally.count} of {args.num} images could be read; choose a smaller --num.")
    gate.require_number(tally.count)
    seed = read_json(args.images / "cell.json").get("seed") if isinstance(source, CellSource) else None
    records, notes = records_of(evaluations, features, args.bootstrap, seed, tally.sha256, run)
    verdicts = gate.judge({record.protocol: record.scores for record in records})
    origin = {"label": source.label, "files": len(source), "skipped": skipped, "reference": main.reference.provenance["dataset"]}
    if args.metrics is None and (lacking := [name for name in main.protocol.default if name not in main.names]):
        notes.append(
            f"left out: {', '.join(lacking)}, for which {args.reference} is not enough as it is. A reference that "
            "`python -m iec.metrics.references` makes, from images or an npz that has some, gives them."
        )
    own, *beside = (record.as_dict() for record in records)
    judged = {"gate": [verdict.as_json() for verdict in verdicts]} if verdicts else {}
    return without_nan(own | {"source": origin, "notes": notes, "beside": beside} | judged)


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
        write_text(args.json, text)
    if not all(verdict["passed"] for verdict in record.get("gate", [])):
        raise SystemExit(1)


if __name__ == "__main__":
    with entry_point():
        main()
