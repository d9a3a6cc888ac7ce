"""A W&B sweep from the arguments of a Hydra sweep, so that a laptop, a cluster and `wandb agent` share one definition.

    python -m iec run -m efficiency=w8a8 iec=all_steps,first_last iec.lambda=0.3,0.5     # one after another
    python -m iec run -m hydra/launcher=slurm efficiency=w8a8 iec=all_steps,first_last iec.lambda=0.3,0.5    # in jobs of Slurm
    python -m iec.sweeps efficiency=w8a8 iec=all_steps,first_last iec.lambda=0.3,0.5 --output sweep.yaml
    wandb sweep sweep.yaml     # says how to start agents

Arguments with several values become the sweep's parameters, the others a part of its command. Every combination is checked as a
cell before anything is written. The metric is the FID, under the key that `iec.io.wandb` gives it.
"""

import itertools
import shlex
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from iec.errors import ConfigError
from iec.io.files import write_text
from iec.io.paths import require_writable, user_path
from iec.io.runtime import command_parser
from iec.runs.cell import Cell
from iec.runs.tracking import score_key
from iec.tables.experiment import Experiment

METHODS = ("grid", "random")
LOGGER = "logger=wandb"


def sweep_config(overrides: Sequence[str], method: str = "grid", name: str | None = None) -> dict[str, Any]:
    """What `wandb sweep` reads. Raises `ConfigError`, or whatever a cell that cannot be run raises."""
    fixed, swept = _split(overrides)
    fixed += [] if any(text.startswith("logger=") for text in fixed) else [LOGGER]
    cells = _cells(fixed, swept)
    metrics = {_metric(cell) for cell in cells}
    return {
        **({"name": name} if name else {}),
        "project": cells[0].logger.project,  # in a sweep it is not the run that says
        "program": "iec",
        "method": method,
        **({"metric": {"name": metric, "goal": "minimize"}} if len(metrics) == 1 and (metric := metrics.pop()) else {}),
        "parameters": {key: {"values": [_value(text) for text in texts]} for key, texts in swept.items()},
        "command": ["${env}", "${interpreter}", "-m", "${program}", "run", *fixed, "${args_no_hyphens}"],
    }


def sweep_text(overrides: Sequence[str], method: str = "grid", name: str | None = None) -> str:
    """The file: `sweep_config`, with the commands that compute the same cells and that made it."""
    config = sweep_config(overrides, method, name)
    arguments = shlex.join(overrides)
    options = f"{'' if method == 'grid' else f' --method {method}'}{f' --name {name}' if name else ''}"
    head = f"# python -m iec run -m {arguments}\n# python -m iec.sweeps {arguments}{options}\n"
    return head + yaml.safe_dump(config, sort_keys=False, width=132)


def _split(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of one value, and key -> values as they are written on the command line."""
    fixed, swept = [], {}
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            text = str(override.input_line)
            if override.is_sweep_override():
                swept[text.partition("=")[0]] = [str(value) for value in override.sweep_string_iterator()]
            else:
                fixed.append(text)
    except HydraException as error:
        raise ConfigError(f"{error}\nList the values of a sweep: key=a,b or key=range(1,5).") from error
    if not swept:
        raise ConfigError("Nothing is swept: give at least one key several values, e.g. iec.lambda=0.3,0.5.")
    return fixed, swept


def _cells(fixed: list[str], swept: dict[str, list[str]]) -> list[Cell]:
    """One for each combination, the last key changing first, as in Hydra."""
    pairs = [[f"{key}={text}" for text in texts] for key, texts in swept.items()]
    rows = {" ".join(combination): [*fixed, *combination] for combination in itertools.product(*pairs)}
    return list(Experiment("sweep", "", (), rows, {}).cells().values())


def _metric(cell: Cell) -> str | None:
    """The key of the cell's FID; None if it is not asked for."""
    metrics = cell.metrics
    if metrics is None or (metrics.scores is not None and "fid" not in metrics.scores):
        return None
    return score_key(metrics.protocol, "fid")


def _value(text: str) -> int | float | str:
    """A number if it is written as Python writes it, so that an agent hands over the very same text."""
    for kind in (int, float):
        try:
            if str(number := kind(text)) == text:
                return number
        except ValueError:
            continue
    return text


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("overrides", nargs="+", metavar="OVERRIDE", help="as for iec run -m")
    parser.add_argument("--method", choices=METHODS, default="grid")
    parser.add_argument("--name", help="of the sweep on W&B")
    parser.add_argument("--output", type=user_path, help="a file; by default the text is printed")
    options = parser.parse_intermixed_args(arguments)
    if options.output is not None:
        require_writable(options.output, "--output FILE")
    text = sweep_text(options.overrides, options.method, options.name)
    if options.output is None:
        print(text, end="")
    else:
        write_text(options.output, text)
