"""The command ``python -m iec.runs.export_images``, for a checkout: see `iec.runs.export_images`."""

from iec.io.runtime import entry_point
from iec.runs.export_images import main

if __name__ == "__main__":
    with entry_point():
        main()
