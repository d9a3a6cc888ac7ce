"""One self-contained HTML page of all tables, figures and ablations, read from finished cells: ``python -m iec.report``."""
