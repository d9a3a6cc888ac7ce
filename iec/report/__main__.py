"""One HTML page of all tables, figures and ablations that are finished; what is missing is listed with its command.

    python -m iec.report                                                  # every experiment that has scales and a reference row
    python -m iec.report experiments/table1.yaml experiments/table2.yaml --scale small [--model ddim_fashion_small]
    python -m iec.report --output report.html num_images=64               # Hydra overrides for every row

The page needs no other file and no network. It is written to OUTPUT/report.html.
"""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

from iec.errors import ConfigError
from iec.io.environment import git_revision
from iec.io.files import write_text
from iec.io.paths import require_writable, user_path
from iec.io.resources import experiment_file, experiments
from iec.io.runtime import command_parser, entry_point
from iec.io.yaml import read_yaml
from iec.report.page import page
from iec.report.pictures import figures_of
from iec.report.sections import read_section
from iec.runs.config import composing
from iec.runs.paths import with_home
from iec.tables.scales import add_scale_options

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("given", nargs="*", metavar="FILE|OVERRIDE", help="experiment files, and Hydra overrides for every row")
    add_scale_options(parser)
    parser.add_argument("--output", type=user_path, metavar="FILE", help="instead of OUTPUT/report.html")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    overrides = [text for text in options.given if "=" in text]
    files = [experiment_file(user_path(text)) for text in options.given if "=" not in text] or tables(experiments())
    output = options.output or _output(overrides) / "report.html"
    require_writable(output, "--output FILE")
    folder = files[0].resolve().parent
    sections = [read_section(path, overrides, options.scale, options.model) for path in files]
    figures = figures_of(folder / "results" / "analysis", folder.parent)
    html = page(sections, figures, f"{datetime.now(UTC):%Y-%m-%d}", git_revision())
    write_text(output, html)
    done, count = sum(section.done for section in sections), sum(len(section.lines) for section in sections)
    log.info("%s: %d of %d rows, %.1f MB", output, done, count, len(html) / 1e6)


def tables(folder: Path) -> list[Path]:
    """The experiment files that have scales and a reference row: the others are only analysed, or about one bundled model."""
    paths = [path for path in folder.glob("*.yaml") if _is_table(path)]
    if not paths:
        raise ConfigError(f"{folder} has no experiment files. Name some: python -m iec.report FILE ...")
    return sorted(paths, key=lambda path: (not path.stem.startswith("table"), not path.stem.startswith("figure"), path.stem))


def _is_table(path: Path) -> bool:
    """Also of a file that cannot be read: its section says why."""
    try:
        entry = read_yaml(path)
    except ConfigError:
        return True
    return not isinstance(entry, dict) or bool(entry.get("scales") and entry.get("reference"))


def _output(overrides: list[str]) -> Path:
    """``paths.output``."""
    with composing() as composed:
        return Path(with_home(composed(o for o in overrides if o.startswith("paths."))).paths.output)


if __name__ == "__main__":
    with entry_point():
        main()
