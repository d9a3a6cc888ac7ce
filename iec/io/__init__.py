"""Files, downloads, locks, progress, devices: what touches the machine. Knows no cell, result or experiment."""
