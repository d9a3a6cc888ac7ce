"""A finished cell as a run of Weights & Biases.

Its id is the hash at the end of its folder's name, so that a requeue, or asking for more images, continues the run. It has N,
seconds_per_image, calls/KIND (network calls per image), PROTOCOL/SCORE with the ends of its interval, PROTOCOL/SCORE_low and
PROTOCOL/SCORE_high (e.g. inception/fid, see `score_key`), and the picture grid. Its configuration has its keys as on the command
line (iec.lambda), like a sweep's.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from iec.io.wandb import wandb_run
from iec.metrics.record import Record
from iec.runs.runner import Result


def log_cell(result: Result, group: str | None = None) -> None:
    """Log a finished cell. group: the table that it is a row of. Raises `LoggerError`."""
    cell, manifest = result.cell, result.manifest
    if cell.logger.name == "wandb":
        import wandb

        figures = {"N": manifest.num_images, "seconds_per_image": manifest.seconds_per_image, **_scores(result.records)}
        calls = {f"calls/{kind}": count for kind, count in manifest.calls_per_image.items()}
        run_id = cell.slug.rpartition("-")[2]
        with wandb_run(cell.logger, cell.paths.output, run_id, cell.slug, group, "cell", _flat(cell.config)) as run:
            run.define_metric("*", step_metric="N")  # the axis of its charts, as more images may follow
            run.log({**figures, **calls, "grid": wandb.Image(str(cell.folder / "grid.png"))})


def score_key(protocol: str, name: str) -> str:
    """Scores of one name are of different kinds in different protocols, and so are their keys."""
    return f"{protocol}/{name}"


def _scores(records: Sequence[Record]) -> dict[str, float]:
    """Values, and the ends of the intervals where there are any."""
    values: dict[str, float] = {}
    for key, score in ((score_key(record.protocol, name), s) for record in records for name, s in record.scores.items()):
        ends = {f"{key}_low": score.low, f"{key}_high": score.high}
        values |= {key: score.value, **{end: value for end, value in ends.items() if math.isfinite(value)}}
    return values


def _flat(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> value."""

    def pairs(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict):
            yield prefix, value
            return
        for key, inner in value.items():
            yield from pairs(f"{prefix}.{key}" if prefix else str(key), inner)

    return dict(pairs("", OmegaConf.to_container(config, resolve=True)))
