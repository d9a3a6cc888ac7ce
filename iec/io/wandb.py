"""Optional logging to Weights & Biases. The files on disk are the source of truth; this is a view, made once they are there.

What a run shows is said where it is made: a cell's in `iec.runs.tracking`, a table's in `iec.tables.tracking`.

Mode: logger.mode, else WANDB_MODE, else that of wandb's own settings, but offline where there is no key. Nothing ever prompts. In a
W&B sweep the agent decides the project and the id. A cell that two tables share is in the group of the one that logged it last.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iec.errors import ConfigError, IECError

log = logging.getLogger(__name__)
LOGGERS = ("none", "wandb")
MODES = ("online", "offline")
NEED_NO_KEY = ("offline", "dryrun", "disabled")
LONGEST_NAME = 128
"""Characters of a project's or a group's name."""
INIT_SECONDS, FINISH_SECONDS = 60.0, 300.0
"""How long to wait for the server: for a run to begin, and at its end for what is left to upload (wandb itself waits forever)."""


class LoggerError(IECError):
    """W&B failed. What it should have shown is finished, and on disk."""


@dataclass(frozen=True)
class Logger:
    """The configuration group ``logger``. name: one of `LOGGERS`. group: None for the table's name, where a run is a row of one."""

    name: str
    project: str = "iec"
    group: str | None = None
    mode: str | None = None


def check_logger(logger: Logger) -> None:
    """Raises `ConfigError` if the configuration group ``logger`` cannot work, before anything is computed. Asks no server."""
    if logger.name not in LOGGERS:
        raise ConfigError(f"Unknown logger {logger.name!r}; choose one of {', '.join(LOGGERS)}.")
    if logger.mode not in (None, *MODES):
        raise ConfigError(f"logger.mode={logger.mode}; choose {' or '.join(MODES)}, or null: offline where there is no API key.")
    if logger.name == "wandb":
        if find_spec("wandb") is None:
            raise ConfigError("logger=wandb: wandb is not installed. Install it (pip install wandb), or use logger=none.")
        _check_names(logger)
        wandb_mode(logger)


def _check_names(logger: Logger) -> None:
    """Names that W&B refuses only once a run begins."""
    import wandb

    for key, name in (("project", logger.project), ("group", logger.group)):
        if name is not None and not name.strip():
            raise ConfigError(f"logger.{key} is blank. Give it a name{', or null' if key == 'group' else ''}.")
        if name is not None and len(name) > LONGEST_NAME:
            raise ConfigError(f"logger.{key}={name}: {len(name)} characters, and W&B takes {LONGEST_NAME}. Shorten it.")
    try:
        wandb.Settings(project=logger.project)
    except wandb.Error as error:
        raise ConfigError(f"logger.project={logger.project}: {error}. Give the project another name.") from error


def wandb_mode(logger: Logger) -> str:
    """As said at the top. Raises `ConfigError` where online is asked for without a key, or a key or a setting is malformed."""
    import wandb
    from wandb.sdk.lib import wbauth  # there is no public way: wandb.login and wandb.Api ask the server, or the user

    try:
        settings = wandb.setup().settings
    except wandb.Error as error:
        raise ConfigError(f"logger=wandb: {error}. Correct the variables WANDB_* or W&B's settings file.") from error
    requested = logger.mode or os.environ.get("WANDB_MODE")
    mode = requested or settings.mode
    if mode in NEED_NO_KEY:
        return mode
    try:  # WANDB_API_KEY, netrc, wandb's settings, or an identity token
        key = wbauth.authenticate_session(host=settings.base_url, source="iec", prompt=False, update_session=False)
    except wandb.Error as error:
        raise ConfigError(f"logger=wandb: {error} Correct the key (`wandb login`), or use logger.mode=offline.") from error
    if key is None and requested:
        raise ConfigError(f"W&B mode {requested}: no API key for {settings.base_url}. Use `wandb login`, or logger.mode=offline.")
    return mode if key else "offline"


@contextmanager
def wandb_run(
    logger: Logger, folder: Path, run_id: str, name: str, group: str | None, job_type: str, values: Mapping[str, Any]
) -> Iterator[Any]:
    """A run that is begun or continued, and finished. Its folder is logged, or its address.

    folder: for wandb's files. values: the run's configuration, key -> value. Raises
    `LoggerError`.
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    mode: Any = wandb_mode(logger)
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
            project=logger.project,
            group=logger.group or group,
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
