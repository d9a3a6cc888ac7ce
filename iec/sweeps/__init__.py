"""Sweeps for Weights & Biases, from the arguments of a Hydra sweep."""
