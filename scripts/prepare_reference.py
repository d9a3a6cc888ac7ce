"""The command ``python -m iec.metrics.references``, for a checkout: see `iec.metrics.references.__main__`."""

from iec.io.runtime import entry_point
from iec.metrics.references.__main__ import main

if __name__ == "__main__":
    with entry_point():
        main()
