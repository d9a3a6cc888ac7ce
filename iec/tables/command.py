"""A table and its pictures from an experiment file.

    python -m iec.tables experiments/bundled.yaml                   # assemble what exists, list what is missing
    python -m iec.tables experiments/bundled.yaml --run             # compute what is missing first
    python -m iec.tables experiments/bundled.yaml --run num_images=64
    python -m iec.tables experiments/table1.yaml --scale paper      # the paper's models
    python -m iec.tables experiments/table1.yaml --scale small      # the bundled models in their place, each in rows of its own
    python -m iec.tables experiments/table1.yaml --model ddim_fashion_small     # this one alone
    python -m iec.tables experiments/*.yaml --status                # how far every row is
    python -m iec.tables experiments/table1.yaml --redraw --out DIR # the plots again, from DIR/table1/table.json

Written to OUTPUT/tables/NAME-HASH, or to DIR/NAME with --out DIR: table.md, table.csv, table.tex, table.json, grid.png,
seconds.png, error.png, noise.png, scores.png, cost.png, or of a file with two axes of variants map-SCORE.png; of several models
each for every model: grid-MODEL.png, and of rows that are compared with others for every technique. Pictures that would have no
content are left out.
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from iec.errors import ArtifactError, ConfigError, IECError, WeightsError
from iec.io.files import canonical_hash, read_json
from iec.io.paths import require_writable, user_path
from iec.io.runtime import command_parser
from iec.metrics.paired import PAIRED
from iec.runs.cell import Cell
from iec.runs.runner import Result, finished_result, run_cell
from iec.runs.status import progress_of
from iec.runs.tracking import log_cell
from iec.tables.comparison import compared
from iec.tables.experiment import Experiment
from iec.tables.figures import write_pictures, write_plots
from iec.tables.formats import show
from iec.tables.measured import Measured
from iec.tables.rows import build_rows
from iec.tables.scales import add_scale_options
from iec.tables.table import caption_of, write_table
from iec.tables.tracking import log_table

log = logging.getLogger(__name__)
LACKING: tuple[type[IECError], ...] = (WeightsError, ArtifactError)
"""How a row ends that lacks files of weights or of statistics here: the others can be computed."""


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("given", nargs="+", metavar="FILE|OVERRIDE", help="experiment files, and Hydra overrides for every row")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="compute the rows that are missing")
    add_scale_options(parser)
    parser.add_argument("--out", type=user_path, metavar="DIR", help="for the tables, each in a folder named as its file")
    what.add_argument("--status", action="store_true", help="only say how far each row is")
    what.add_argument("--redraw", action="store_true", help="only draw the plots again, from the table.json in --out DIR")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    files = [user_path(text) for text in options.given if "=" not in text]
    overrides = [text for text in options.given if "=" in text]
    if not files:
        parser.error("no experiment file is given, only overrides. Name one: experiments/bundled.yaml")
    experiments = [Experiment.read(path, overrides, options.scale, options.model) for path in files]
    for experiment in experiments:
        if not experiment.references:
            raise ConfigError(f"{experiment.name} has no reference row: it is no table. Use  python -m iec.analysis.")
        if options.out is not None and not options.status:
            require_writable(options.out / experiment.name / "table.md", "--out DIR")
    if options.redraw:
        for experiment in experiments:
            redraw(experiment, options.out)
        return
    checked = [(experiment, *experiment.available(LACKING)) for experiment in experiments]  # every row, before any is computed
    if not options.status:
        for experiment, cells, _ in checked:
            require_paired(experiment, cells)
    for experiment, cells, missing in checked:
        if options.status:
            print(status(experiment, cells, missing))
        else:
            assemble(experiment, cells, missing, options.run, options.out)


def require_paired(experiment: Experiment, cells: Mapping[str, Cell]) -> None:
    """Raises `WeightsError` or `MetricError` for a paired score that these cells' images cannot have here."""
    for resolution in {cell.card.resolution for cell in cells.values()}:
        for name in experiment.paired:
            PAIRED[name].require(resolution)


def redraw(experiment: Experiment, out: Path | None) -> None:
    """All pictures but the samples, from the table.json that is in their folder. Raises `ConfigError` where there is none."""
    if out is None:
        raise ConfigError("--redraw needs the folder of the tables: --out DIR.")
    folder = out / experiment.name
    file = folder / "table.json"
    try:
        rows = [Measured.from_json(entry) for entry in read_json(file) or [] if entry["label"] in experiment.rows]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file} is of another version ({error!r}). Write the table again: leave --redraw out.") from error
    if not rows:
        raise ConfigError(f"{file} has no rows of {experiment.name}. Write the table first: leave --redraw out.")
    print("\n".join(str(path) for path in write_plots(rows, experiment, folder)))


def status(experiment: Experiment, cells: Mapping[str, Cell], missing: Mapping[str, IECError]) -> str:
    """A line for each row: done, how many images are there, failed and why, or what it lacks."""
    states = _states(cells, missing)
    return "\n".join([experiment.title, *(f"  {label}: {states[label]}" for label in experiment.rows)])


def _states(cells: Mapping[str, Cell], missing: Mapping[str, IECError]) -> dict[str, str]:
    lacking = {label: f"cannot run here: {type(e).__name__}: {str(e).splitlines()[0]}" for label, e in missing.items()}
    return {label: progress_of(cell) for label, cell in cells.items()} | lacking


def assemble(
    experiment: Experiment, cells: dict[str, Cell], missing: Mapping[str, IECError], compute: bool, out: Path | None = None
) -> Path | None:
    """The table of what is finished, after computing what is not if asked to. missing: rows that cannot run here. out: see --out.
    Returns its folder; None if nothing is finished.

    A row that fails does not stop the others; if one did, or could not be computed, the last error is raised at the end.
    """
    results: dict[str, Result] = {}
    failure: IECError | None = None
    folder: Path | None = None
    for text, labels in _by_text(missing).items():
        log.error("cannot run here: %s: %s", ", ".join(labels), text)
        if compute or not cells:
            failure = missing[labels[0]]
    for k, (label, cell) in enumerate(cells.items(), 1):
        if compute:
            log.info("[%d/%d] %s", k, len(cells), label)
        try:
            result = run_cell(cell) if compute else finished_result(cell)
            if result is not None:
                results[label] = result
                log_cell(result, experiment.name)
        except IECError as error:
            log.error("failed: %s: %s\n    %s", label, error, experiment.command(label))
            failure = error
            continue
        if result is None:
            log.info("missing: %s\n    %s", label, experiment.command(label))
        elif lacking := result.lacking:
            log.info("%s has no scores of %s: --run computes them, or says what they lack", label, ", ".join(lacking))
    if results:
        others = {label: cell for label, cell in cells.items() if label not in results}
        folder = _show(experiment, cells, results, _states(others, missing), out)
    elif failure is None:
        log.info("Nothing to show yet; add --run to compute it.")
    if failure is not None:
        raise failure
    return folder


def _by_text(errors: Mapping[str, IECError]) -> dict[str, list[str]]:
    """What an error says -> the labels of its rows: rows of one model lack the same files."""
    labels: dict[str, list[str]] = {}
    for label, error in errors.items():
        labels.setdefault(str(error), []).append(label)
    return labels


def _show(
    experiment: Experiment, cells: dict[str, Cell], results: dict[str, Result], absent: Mapping[str, str], out: Path | None
) -> Path:
    """Write the table and its pictures, print it and return its folder. absent: label -> why it is not there."""
    output = next(iter(cells.values())).paths.output
    key = canonical_hash([cells[label].slug for label in results])[:10]
    folder = out / experiment.name if out else output / "tables" / f"{experiment.name}-{key}"
    rows = compared(build_rows(results, experiment.references, experiment.paired), experiment)
    header, body = write_table(rows, experiment, folder, absent)
    pictures = write_pictures(rows, experiment, folder)
    show(header, body, experiment.title)
    print(caption_of(rows, experiment))
    print("\n".join(str(path) for path in [folder / "table.md", *pictures]))
    log_table(experiment, cells, header, body, pictures)
    return folder
