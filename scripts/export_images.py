"""Export a cell's images as PNG files, 000000.png, 000001.png, ... named by image index.

python scripts/export_images.py outputs/CELL pngs
"""

import argparse
from pathlib import Path

import numpy as np

from iec.errors import StoreError
from iec.images import save_png
from iec.progress import stage
from iec.runtime import entry_point


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path, help="a cell's folder (the one with cell.json)")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    shards = sorted((args.cell / "shards").glob("*.npz"))
    if not shards:
        raise StoreError(f"{args.cell} holds no finished shards. Give the folder that has cell.json in it.")
    with stage("exporting shards", len(shards)) as advance:
        for path in shards:
            with np.load(path, allow_pickle=False) as shard:
                for index, image in zip(shard["indices"], shard["images"], strict=True):
                    save_png(args.output / f"{index:06d}.png", image)
            advance()
    print(args.output)


if __name__ == "__main__":
    with entry_point():
        main()
