"""``python -m iec.tables``, see `iec.tables.command`."""

from iec.io.runtime import entry_point, keep_freed_memory
from iec.tables.command import main

if __name__ == "__main__":
    keep_freed_memory()
    with entry_point():
        main()
