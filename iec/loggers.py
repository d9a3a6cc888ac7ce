"""Optional logging to Weights & Biases. The files on disk are the source of truth; this is a view, made once they are there.

    a cell     run id: the hash at the end of its folder's name, so that a requeue, or asking for more images, continues the run
    a table    run id: the hash of its name and its cells; it and its cells are the group of its name, unless logger.group is set

A cell's run has N, seconds_per_image, calls/KIND (network calls per image), PROTOCOL/SCORE with the ends of its interval,
PROTOCOL/SCORE_low and PROTOCOL/SCORE_high (e.g. inception/fid, see `score_key`), and the picture grid. A table's run has table, as
in table.md, and its pictures. The configuration of a cell's run has its keys as on the command line (iec.lambda), like a sweep's.

Mode: logger.mode, else WANDB_MODE, else that of wandb's own settings, but offline where there is no key. Nothing ever prompts. In a
W&B sweep the agent decides the project and the id. A cell that two tables share is in the group of the one that logged it last.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from iec.errors import ConfigError, IECError
from iec.files import canonical_hash

if TYPE_CHECKING:
    from iec.cell import Cell
    from iec.experiments import Experiment
    from iec.runner import Result

log = logging.getLogger(__name__)
LOGGERS = ("none", "wandb")
MODES = ("online", "offline")
NEED_NO_KEY = ("offline", "dryrun", "disabled")
INIT_SECONDS, FINISH_SECONDS = 60.0, 300.0
"""How long to wait for the server: for a run to begin, and at its end for what is left to upload (wandb itself waits forever)."""


class LoggerError(IECError):
    """W&B failed. What it should have shown is finished, and on disk."""


def log_cell(result: "Result", group: str | None = None) -> None:
    """Log a finished cell. group: the table that it is a row of. Raises `LoggerError`."""
    if (config := result.cell.config).logger.name == "wandb":
        import wandb

        cell, manifest = result.cell, result.manifest
        figures = {"N": manifest["num_images"], "seconds_per_image": manifest["seconds_per_image"], **_scores(result.record)}
        calls = {f"calls/{kind}": count for kind, count in manifest["calls_per_image"].items()}
        with _run(config, cell.slug.rpartition("-")[2], cell.slug, group, "cell", _flat(config)) as run:
            run.define_metric("*", step_metric="N")  # the axis of its charts, as more images may follow
            run.log({**figures, **calls, "grid": wandb.Image(str(cell.folder / "grid.png"))})


def log_table(
    experiment: "Experiment", cells: "Mapping[str, Cell]", header: list[str], body: list[list[str]], pictures: list[Path]
) -> None:
    """Log a table and its pictures; its cells are logged on their own. Raises `LoggerError`."""
    if (config := next(iter(cells.values())).config).logger.name == "wandb":
        import wandb

        slugs = {label: cell.slug for label, cell in cells.items()}
        run_id = canonical_hash([experiment.name, slugs])[:10]
        table = wandb.Table(columns=["label", *header[1:]], data=body)
        with _run(config, run_id, experiment.name, experiment.name, "table", {"title": experiment.title, "cells": slugs}) as run:
            run.log({"table": table, **{path.stem: wandb.Image(str(path)) for path in pictures}})


def score_key(protocol: str, name: str) -> str:
    """Scores of one name are of different kinds in different protocols, and so are their keys."""
    return f"{protocol}/{name}"


def check_logger(config: DictConfig) -> None:
    """Raises `ConfigError` if the configuration group ``logger`` cannot work, before anything is computed."""
    if config.name not in LOGGERS:
        raise ConfigError(f"Unknown logger {config.name!r}; choose one of {', '.join(LOGGERS)}.")
    if config.mode not in (None, *MODES):
        raise ConfigError(f"logger.mode={config.mode}; choose {' or '.join(MODES)}, or null: offline where there is no API key.")
    if config.name == "wandb":
        if find_spec("wandb") is None:
            raise ConfigError("logger=wandb: wandb is not installed. Install it (pip install wandb), or use logger=none.")
        wandb_mode(config)


def wandb_mode(config: DictConfig) -> str:
    """As said at the top. Raises `ConfigError` where online is asked for without a key, or a key is malformed."""
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    asked = config.mode or os.environ.get("WANDB_MODE")
    mode = asked or settings.mode
    if mode in NEED_NO_KEY:
        return mode
    try:  # WANDB_API_KEY, netrc, wandb's settings, or an identity token
        key = wbauth.authenticate_session(host=settings.base_url, source="iec", prompt=False, update_session=False)
    except wandb.Error as error:
        raise ConfigError(f"logger=wandb: {error} Correct the key (`wandb login`), or use logger.mode=offline.") from error
    if key is None and asked:
        raise ConfigError(f"W&B mode {asked}: no API key for {settings.base_url}. Use `wandb login`, or logger.mode=offline.")
    return mode if key else "offline"


@contextmanager
def _run(config: DictConfig, run_id: str, name: str, group: str | None, job_type: str, values: Mapping[str, Any]) -> Iterator[Any]:
    """A run that is begun or continued, and finished. Its folder is logged, or its address."""
    import wandb

    folder = Path(config.paths.output)
    folder.mkdir(parents=True, exist_ok=True)
    mode: Any = wandb_mode(config.logger)
    settings = wandb.Settings(
        silent=mode == "offline",  # what is to be known then is logged here
        quiet=True,
        console="off",
        x_disable_stats=True,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    try:
        with wandb.init(
            project=config.logger.project,
            group=config.logger.group or group,
            job_type=job_type,
            id=run_id,
            name=name,
            resume="allow",
            mode=mode,
            dir=folder,
            config=dict(values),
            settings=settings,
        ) as run:
            yield run
    except (wandb.Error, OSError) as error:
        raise LoggerError(
            f"{name} is finished, but W&B failed ({type(error).__name__}: {error}). The same command logs it again and computes "
            "nothing; logger.mode=offline needs no server."
        ) from error
    if run.disabled:
        log.info("W&B is disabled: %s is not logged", name)
    elif run.offline:
        log.info("W&B is offline; to upload %s: wandb sync %s", name, Path(run.dir).parent)
    else:
        log.info("W&B: %s", run.url)


def _scores(record: dict[str, Any] | None) -> dict[str, float]:
    """Values, and the ends of the intervals where there are any."""
    if record is None:
        return {}
    found: dict[str, float] = {}
    for name, score in record["scores"].items():
        key = score_key(record["protocol"], name)
        ends = {f"{key}_{end}": score[end] for end in ("low", "high") if math.isfinite(score[end])}
        found |= {key: score["value"], **ends}
    return found


def _flat(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> value."""

    def pairs(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict):
            yield prefix, value
            return
        for key, inner in value.items():
            yield from pairs(f"{prefix}.{key}" if prefix else str(key), inner)

    return dict(pairs("", OmegaConf.to_container(config, resolve=True)))
