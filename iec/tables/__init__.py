"""Experiments: rows of cells, their table and their plots."""
