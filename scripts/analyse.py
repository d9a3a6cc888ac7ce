"""The command ``python -m iec.analysis``, for a checkout: see `iec.analysis.__main__`."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in run.py

from iec.analysis.__main__ import main
from iec.io.runtime import entry_point

if __name__ == "__main__":
    with entry_point():
        main()
