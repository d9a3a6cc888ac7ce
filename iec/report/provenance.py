"""Where the numbers of a row come from."""

from datetime import UTC, datetime
from typing import Any

from iec.io.files import canonical_hash
from iec.runs.runner import Result

Provenance = list[tuple[str, str]]


def provenance_of(result: Result) -> Provenance:
    """(what, value) of a finished cell: what it is, how it was computed, and how it was scored."""
    cell, manifest = result.cell, result.manifest
    calls = manifest.calls_per_image
    return [
        ("cell", cell.slug),
        ("identity", canonical_hash(cell.identity)),
        ("images", f"N = {manifest.num_images}, sha256 of the pixels {manifest.hash}"),
        ("seed, batch", f"{cell.seed}, {cell.batch_size}"),
        ("network calls an image", ", ".join(f"{kind.replace('_', ' ')} {count:g}" for kind, count in calls.items())),
        ("time", f"{manifest.seconds_per_image:.4g} s an image, {manifest.seconds / 3600:.2f} h in all"),
        ("machine", "; ".join(manifest.machines)),
        *_environment(result),
        ("finished", f"{_finished(result):%Y-%m-%d %H:%M} UTC, by the time of its last shard"),
        *_scores(result),
    ]


def _environment(result: Result) -> Provenance:
    if (environment := result.environment) is None:
        return [("sampled with", "not recorded: environment.json of the cell is missing or damaged")]
    versions = {"python": environment.python, **environment.packages}
    return [("sampled with", f"revision {environment.revision or 'unknown'}; {_pairs(versions)}; {environment.platform}")]


def _finished(result: Result) -> datetime:
    shards = (result.store.shard(batch).with_suffix(".json") for batch in result.cell.batches)
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in shards), UTC)


def _scores(result: Result) -> Provenance:
    """Of each protocol."""
    pairs: Provenance = []
    for record in result.records:
        intervals = {f"{score.interval}, {score.resamples} resamples, seed {score.seed}" for score in record.scores.values()}
        pairs += [
            ("score protocol", record.protocol),
            ("scored", f"N = {record.n}, images {record.manifest_hash}"),
            ("reference", record.reference_hash),
            ("extractor", record.extractor_hash),
            ("features", f"{record.resize}; {record.dtype}"),
            ("intervals", "95 %: " + "; ".join(sorted(intervals))),
            ("rules", _pairs(record.rules)),
            ("scored with", _pairs(record.versions)),
        ]
        if record.clip is not None:
            pairs.append(("CLIP model", _pairs(record.clip)))
    return pairs or [("scores", "none asked for")]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
