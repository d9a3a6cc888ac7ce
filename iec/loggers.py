"""Optional logging to Weights & Biases. The files on disk are the source of truth; this is a view of them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from iec.errors import ConfigError

LOGGERS = ("none", "wandb")


def log_cell(config: DictConfig, slug: str, manifest: dict[str, Any], record: dict[str, Any] | None, picture: Path) -> None:
    """Log config, calls, scores and the grid of one cell; the run's id is the cell's slug, so that running again updates it."""
    if _wants_wandb(config):
        import wandb

        scores = {s["label"]: s["value"] for s in record["scores"].values()} if record else {}
        figures = {"N": manifest["num_images"], "seconds_per_image": manifest["seconds_per_image"], **scores}
        calls = {f"calls/{kind}": value for kind, value in manifest["calls_per_image"].items()}
        with _run(config, slug) as run:
            run.log({**figures, **calls, "samples": wandb.Image(str(picture))})


def log_table(config: DictConfig, name: str, header: list[str], rows: list[list[str]], pictures: list[Path]) -> None:
    """Log a finished table and its pictures."""
    if _wants_wandb(config):
        import wandb

        with _run(config, name) as run:
            run.log({"table": wandb.Table(columns=[*header], data=rows), **{p.stem: wandb.Image(str(p)) for p in pictures}})


def _wants_wandb(config: DictConfig) -> bool:
    if config.logger.name not in LOGGERS:
        raise ConfigError(f"Unknown logger {config.logger.name!r}; choose one of {', '.join(LOGGERS)}.")
    return config.logger.name == "wandb"


def _run(config: DictConfig, run_id: str) -> Any:
    import wandb

    folder = Path(config.paths.output) / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    values: Any = OmegaConf.to_container(config, resolve=True)
    return wandb.init(project=config.logger.project, id=run_id, name=run_id, resume="allow", dir=folder, config=values)
