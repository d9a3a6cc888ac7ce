"""Export a cell's images for other tools: PNG files 000000.png, 000001.png, ... named by image index, or one npz for
guided-diffusion.

    python -m iec.runs.export_images outputs/CELL pngs
    python -m iec.runs.export_images outputs/CELL samples.npz
"""

import logging

from iec.io.paths import require_writable, user_path
from iec.io.progress import reported
from iec.io.runtime import command_parser, entry_point
from iec.metrics.images.export import export_npz, export_pngs, name_of
from iec.runs.cell_images import CellSource


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("cell", type=user_path, help="a cell's folder (the one with cell.json)")
    parser.add_argument("output", type=user_path, help="a folder, or a file that ends in .npz")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = CellSource.open(args.cell)
    export, first = (export_npz, args.output) if args.output.suffix.lower() == ".npz" else (export_pngs, args.output / name_of(0))
    require_writable(first, "export_images.py CELL OUTPUT")
    with reported("exporting") as report:
        export(source, args.output, report)
    print(args.output)


if __name__ == "__main__":
    with entry_point():
        main()
