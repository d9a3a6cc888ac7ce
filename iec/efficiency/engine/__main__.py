"""Write the network of a cell as an ONNX file that an engine runs without this package.

    iec export outputs/ddim_fashion_small-w8a8-... network.onnx             # a cell that is there
    iec export network.onnx model=ddim_fashion_small efficiency=w8a8        # or what run.py is given
    iec export network.onnx efficiency=w8a8 --engine openvino

``python -m iec.efficiency.engine`` is the same command. A cell that caches a feature makes two files, the second beside the first:
network.cached.onnx. Both are run and compared with the network before they are written. --engine: whose integer kernels a quantized
network is written for. Use a file: efficiency=engine efficiency.file=network.onnx.
"""

import logging
import tempfile
from pathlib import Path

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from iec.efficiency.engine.export import FORMS, Export, export
from iec.efficiency.engine.file import EngineFile, cached_path, read_file
from iec.efficiency.engine.network import EngineNetwork
from iec.efficiency.engine.sessions import require_runtime
from iec.efficiency.engine.verify import require_close
from iec.errors import ConfigError
from iec.io.cores import intra_op_threads
from iec.io.files import canonical_hash, write_atomic
from iec.io.paths import require_writable, user_path
from iec.io.runtime import command_parser, entry_point
from iec.models.cards import require_unet
from iec.runs.cell import Cell
from iec.runs.config import composing

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("given", nargs="+", metavar="CELL|FILE|OVERRIDE", help="[the folder of a cell] the file [overrides]")
    parser.add_argument("--engine", choices=FORMS, default="onnxruntime", help="of a quantized network (default: %(default)s)")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = [word for word in options.given if "=" in word]
    paths = [user_path(word) for word in options.given if "=" not in word]
    if len(paths) not in (1, 2) or (overrides and len(paths) == 2):
        parser.error("give the folder of a cell and a file, or a file and overrides")
    require_runtime(options.engine, "--engine ")
    for path in (paths[-1], cached_path(paths[-1])):
        require_writable(path, "FILE")
    try:
        with composing() as composed:
            cell = Cell.from_config(_stored(paths[0]) if len(paths) == 2 else composed(overrides))
    except HydraException as error:
        raise ConfigError(str(error)) from error
    if cell.device.type != "cpu":
        raise ConfigError(f"A network is exported on the CPU, and device={cell.device}. Use device=cpu.")
    with intra_op_threads(cell.split.threads):
        export_cell(cell, paths[-1], options.engine)


def export_cell(cell: Cell, path: Path, engine: str) -> None:
    """Write the cell's network to ``path``, and to `cached_path` of it. Raises `ConfigError` for one that has no form in a file."""
    require_unet(cell.card)
    if cell.technique.adaptive is not None:
        raise ConfigError(
            "A file says at which steps the cached network is called, and with efficiency.schedule=adaptive each image decides. "
            "Use efficiency.schedule=uniform."
        )
    model, table = cell.model.load(str(cell.device)), cell.sampler.timetable
    prepared = cell.technique.prepare(model, table, cell.artifacts)
    refresh = cell.sampler_of(prepared).refresh
    written = export(model, prepared, table, refresh, cell.technique_identity, canonical_hash(cell.identity), engine)
    with tempfile.TemporaryDirectory(prefix="iec-") as folder:
        file = _read(written, Path(folder) / "network.onnx")
    arithmetic = file.description.arithmetic
    network = EngineNetwork.of(file, engine, torch.get_num_threads())
    furthest = require_close(model, prepared.network, network, table, refresh, arithmetic)
    for target, data in ((cached_path(path), written.cached), (path, written.full)):
        if data is not None:
            write_atomic(target, lambda file, data=data: file.write(data))  # type: ignore[misc]  # of a default
            log.info("%s: %.2f MB", target, len(data) / 1e6)
    log.info("  %s, %d steps; differs from the cell's network by %.2g of eps under %s", arithmetic, len(table), furthest, engine)


def _read(written: Export, path: Path) -> EngineFile:
    """As a user of the file reads it."""
    path.write_bytes(written.full)
    if written.cached is not None:
        cached_path(path).write_bytes(written.cached)
    return read_file(path)


def _stored(folder: Path) -> DictConfig:
    """The configuration of the cell in ``folder``, on the CPU, where networks are exported."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} is no folder of a cell: it has no config.yaml. Run the cell, or give overrides instead.")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    config.device = "cpu"
    return config


if __name__ == "__main__":
    with entry_point():
        main()
