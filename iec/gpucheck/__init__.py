"""One command that checks a machine with a GPU, measures on it, and writes one report: `iec gpu-check`."""
