"""Where the numbers of a row come from."""

from datetime import UTC, datetime
from typing import Any

from iec.io.files import canonical_hash, read_json
from iec.runs.runner import Result

Facts = list[tuple[str, str]]


def facts_of(result: Result) -> Facts:
    """(what, value) of a finished cell: what it is, how it was computed, and how it was scored."""
    cell, manifest = result.cell, result.manifest
    calls = manifest["calls_per_image"]
    seconds = manifest["seconds_per_image"]
    return [
        ("cell", cell.slug),
        ("identity", canonical_hash(cell.identity)),
        ("images", f"N = {manifest['num_images']}, sha256 of the pixels {manifest['hash']}"),
        ("seed, batch", f"{cell.seed}, {cell.batch_size}"),
        ("network calls an image", ", ".join(f"{kind.replace('_', ' ')} {count:g}" for kind, count in calls.items())),
        ("time", f"{seconds:.4g} s an image, {seconds * manifest['num_images'] / 3600:.2f} h in all"),
        ("machine", "; ".join(manifest["machines"])),
        *_environment(result),
        ("finished", f"{_finished(result):%Y-%m-%d %H:%M} UTC, by the time of its last shard"),
        *([("scores", "none asked for")] if result.record is None else _scores(result.record)),
    ]


def _environment(result: Result) -> Facts:
    held = read_json(result.cell.folder / "environment.json")
    if not isinstance(held, dict) or not {"python", "packages", "revision", "platform"} <= held.keys():
        return [("sampled with", "not recorded: environment.json of the cell is missing or damaged")]
    versions = {"python": held["python"], **held["packages"]}
    return [("sampled with", f"revision {held['revision'] or 'unknown'}; {_pairs(versions)}; {held['platform']}")]


def _finished(result: Result) -> datetime:
    shards = (result.store.shard(batch).with_suffix(".json") for batch in result.cell.batches)
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in shards), UTC)


def _scores(record: dict[str, Any]) -> Facts:
    intervals = {
        f"{score['interval']}, {score['resamples']} resamples, seed {score['seed']}" for score in record["scores"].values()
    }
    facts = [
        ("score protocol", record["protocol"]),
        ("scored", f"N = {record['n']}, images {record['manifest_hash']}"),
        ("reference", record["reference_hash"]),
        ("extractor", record["extractor_hash"]),
        ("features", f"{record['resize']}; {record['dtype']}"),
        ("intervals", "95 %: " + "; ".join(sorted(intervals))),
        ("rules", _pairs(record["rules"])),
        ("scored with", _pairs(record["versions"])),
    ]
    return facts if record["clip"] is None else [*facts, ("CLIP model", _pairs(record["clip"]))]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
