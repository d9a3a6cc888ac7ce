"""How much noise each step takes out, beside the reference run from the same noise."""

import numpy as np

from iec.sampling.timetable import Timetable


def noise_ratio(states: np.ndarray, reference: np.ndarray, table: Timetable, other: Timetable) -> np.ndarray | None:
    """|eps_i| / |eps_i^ref| for each image and step that changes something, float64 [n, S];   eps_i = (x_{i+1} - A_i x_i) / B_i

    eps_i is the noise that step i took: for plain DDIM the predicted one, otherwise what the step amounts to, whatever made it.
    Either run is at its own states. states, reference: [T + 1, n, C, H, W]. table, other: theirs; None where they differ, and where
    steps add noise (eta > 0).
    """
    if table.pairs != other.pairs or table.eta > 0 or other.eta > 0:
        return None
    sizes = []
    for x in (states, reference):
        taken = [_taken(x, i, table) for i in range(len(table)) if not table.is_noop(i)]
        sizes.append(np.linalg.norm(np.reshape(taken, (*np.shape(taken)[:2], -1)), axis=2).T)
    return np.asarray(sizes[0] / sizes[1])


def _taken(states: np.ndarray, i: int, table: Timetable) -> np.ndarray:
    """[n, C, H, W]"""
    return (states[i + 1].astype(np.float64) - table.A[i] * states[i].astype(np.float64)) / table.B[i]
