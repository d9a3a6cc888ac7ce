"""Files outside the code: ``configs/`` and ``experiments/`` lie at the top of a checkout, and inside an installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def configs() -> Path:
    """The folder of Hydra's configuration."""
    return _folder("configs")


def experiments() -> Path:
    """The folder of the experiment files."""
    return _folder("experiments")


def experiment_file(path: Path) -> Path:
    """``path`` itself if it exists, else the project's experiment of that name: ``bundled`` and ``experiments/bundled.yaml`` are
    found from every working directory. A path that is neither is returned as it is; whoever reads it says that it is missing.
    """
    return _shipped(path, Path())


def gate_file(path: Path) -> Path:
    """As `experiment_file`, of the project's gates: ``bundled`` and ``experiments/gates/bundled.yaml`` (`iec.metrics.gate`)."""
    return _shipped(path, Path("gates"))


def _shipped(path: Path, folder: Path) -> Path:
    """folder: below the experiments'."""
    ours = experiments() / folder / f"{path.stem}.yaml"
    asked_by_name = path.parent in (Path(), "experiments" / folder) and path.suffix in ("", ".yaml")
    return ours if asked_by_name and not path.is_file() and ours.is_file() else path


def _folder(name: str) -> Path:
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
