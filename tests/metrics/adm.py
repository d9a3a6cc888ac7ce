"""The formulas of guided-diffusion's evaluations/evaluator.py in plain numpy and float64, written from their description."""

import numpy as np
import scipy.linalg


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, np.float64)
    return x.mean(axis=0), np.cov(x, rowvar=False)


def frechet(x: np.ndarray, y: np.ndarray, eps: float = 1e-6) -> float:
    (m1, s1), (m2, s2) = statistics(x), statistics(y)
    root = scipy.linalg.sqrtm(s1 @ s2)
    if not np.isfinite(root).all():
        offset = eps * np.eye(len(s1))
        root = scipy.linalg.sqrtm((s1 + offset) @ (s2 + offset))
    return float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real)


def inception_score(logits: np.ndarray, size: int = 5000) -> float:
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    parts = [p[k : k + size] for k in range(0, len(p), size)]
    return float(np.mean([np.exp((q * (np.log(q) - np.log(q.mean(axis=0)))).sum(axis=1).mean()) for q in parts]))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[np.square(np.float64(x) - y).sum() for y in b] for x in a])


def precision_recall(reference: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(precision, recall); a ball reaches as far as the 4th smallest squared distance, itself among them."""
    real, own = (np.sort(squared_distances(v, v), axis=1)[:, k] for v in (reference, generated))
    across = squared_distances(reference, generated)
    return float((across <= real[:, None]).any(axis=0).mean()), float((across <= own).any(axis=1).mean())
