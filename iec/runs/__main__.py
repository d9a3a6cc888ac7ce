"""``python -m iec.runs``, see `iec.runs.run`."""

from iec.runs.run import command

if __name__ == "__main__":
    command()
