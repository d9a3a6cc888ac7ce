"""``python -m iec.sweeps``, see `iec.sweeps.sweep`."""

from iec.io.runtime import entry_point
from iec.sweeps.sweep import main

if __name__ == "__main__":
    with entry_point():
        main()
