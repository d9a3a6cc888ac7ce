"""Optional logging to Weights & Biases. The files on disk are the source of truth; this is a view, made once they are there.

What a run shows is said where it is made: a cell's in `iec.runs.tracking`, a table's in `iec.tables.tracking`.

Mode: logger.mode, else WANDB_MODE, else that of wandb's own settings, but offline where there is no key. Nothing ever prompts. In a
W&B sweep the agent decides the project and the id. A cell that two tables share is in the group of the one that logged it last.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from iec.errors import ConfigError, IECError

log = logging.getLogger(__name__)
LOGGERS = ("none", "wandb")
MODES = ("online", "offline")
NEED_NO_KEY = ("offline", "dryrun", "disabled")
INIT_SECONDS, FINISH_SECONDS = 60.0, 300.0
"""How long to wait for the server: for a run to begin, and at its end for what is left to upload (wandb itself waits forever)."""


class LoggerError(IECError):
    """W&B failed. What it should have shown is finished, and on disk."""


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
def wandb_run(
    logger: DictConfig, folder: Path, run_id: str, name: str, group: str | None, job_type: str, values: Mapping[str, Any]
) -> Iterator[Any]:
    """A run that is begun or continued, and finished. Its folder is logged, or its address.

    logger: the configuration group of this name. folder: for wandb's files. values: the run's configuration, key -> value. Raises
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
