"""Iterative Error Correction: the damped fixed-point iteration that refines one denoising step.

| here         | paper (arXiv 2511.06250, Algorithm 1) | official code (zysxmu/IEC)                    |
|--------------|---------------------------------------|-----------------------------------------------|
| y            | x^(k)                                 | the running estimate of the next latent       |
| target(y)    | A_t x_t + B_t eps(x^(k), t)           | ddim update from the *unchanged* x_t, g       |
| lambda       | lambda                                | gamma ** iter                                 |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from iec.errors import ConfigError

Rows = slice | Tensor
"""Which images of the batch: all of them (a slice), or the indices of those that have not converged."""

PRESETS = ("paper", "official_ddpm", "official_latent")


@dataclass(frozen=True)
class Correction:
    """How a step is refined:  y <- y + lambda_k (target(y) - y),  k = 1 .. K.

    iterations: K >= 0, each one more network call. lambdas: K values >= 0, or one for all.
    tolerance: stop when the criterion falls below it; 0 never stops.
    criterion: ``change`` is ||lambda (target - y)|| after the update, and the new iterate is returned (paper); ``residual`` is
    ||target - y|| / (||y|| + 1e-6) before it, and the old iterate is returned (official code).
    norm: over one ``image``, or over the ``batch`` as in the official code, where an image then depends on its batch-mates.
    cache_from: which evaluation's feature later cached steps reuse, ``first`` or ``last``.
    evaluate_at: the timestep that the corrected state is fed with. ``t`` is IEC. ``s``, the next timestep, makes K = 1,
    lambda = 0.5 Heun's rule, the control that costs the same (no correction at a step that ends at the clean image, where eps
    is undefined).
    """

    iterations: int = 1
    lambdas: tuple[float, ...] = (0.5,)
    tolerance: float = 1e-5
    criterion: Literal["change", "residual"] = "change"
    norm: Literal["image", "batch"] = "image"
    cache_from: Literal["last", "first"] = "last"
    evaluate_at: Literal["t", "s"] = "t"

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 0:
            raise ConfigError(f"iec.iterations={self.iterations} must be an integer of 0 or more.")
        if len(self.lambdas) not in (1, self.iterations) and self.iterations:
            raise ConfigError(
                f"iec.lambda has {len(self.lambdas)} values for {self.iterations} corrections; give one, or one each."
            )
        if any(not (math.isfinite(v) and v >= 0) for v in self.lambdas):
            raise ConfigError(f"iec.lambda={list(self.lambdas)} must be finite and not negative (the paper uses 0.5).")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(f"iec.tolerance={self.tolerance} must be finite and not negative.")
        choices = {"criterion": ("change", "residual"), "norm": ("image", "batch"), "cache_from": ("last", "first")}
        for name, allowed in {**choices, "evaluate_at": ("t", "s")}.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"iec.{name}={getattr(self, name)!r}; choose {' or '.join(allowed)}.")

    @classmethod
    def preset(cls, name: str = "paper", *, iterations: int | None = None, **changes: object) -> "Correction":
        """``paper``: K 1, lambda 0.5. ``official_ddpm``: lambda_k = 0.5^k. ``official_latent``: K 2, lambda_k = 0.5^(k-1).

        The official ones stop by the relative residual over the batch (1e-3 and 1e-6) and then keep the old iterate. With
        eta > 0 the official code also redraws the noise of the step in every iteration, which leaves no fixed point to
        converge to; here it is drawn once in every preset.
        """
        if name == "paper":
            base = cls() if iterations is None else cls(iterations=iterations)
        elif name in ("official_ddpm", "official_latent"):
            first, default, tolerance = (1, 1, 1e-3) if name == "official_ddpm" else (0, 2, 1e-6)
            k = default if iterations is None else iterations
            lambdas = tuple(0.5 ** (first + j) for j in range(max(k, 1)))
            base = cls(k, lambdas, tolerance, criterion="residual", norm="batch")
        else:
            raise ConfigError(f"Unknown iec.preset {name!r}; choose one of {', '.join(PRESETS)}.")
        return replace(base, **changes)  # type: ignore[arg-type]

    def lambda_of(self, k: int) -> float:
        """lambda of correction k = 1 .. K."""
        return self.lambdas[k - 1] if len(self.lambdas) > 1 else self.lambdas[0]


def refine(y: Tensor, target: Callable[[Tensor, int, Rows], Tensor], correction: Correction) -> Tensor:
    """Refine the ordinary step y = x^(0), [B, ...].

    ``target(y[rows], k, rows)`` is A x_t + B eps(y[rows], t) for those images. Images that have converged are not evaluated again.
    """
    rows: Rows = slice(None)
    for k in range(1, correction.iterations + 1):
        old, weight = y[rows], correction.lambda_of(k)
        residual = target(old, k, rows) - old
        new = old + weight * residual
        done = None
        if correction.tolerance > 0 and (correction.criterion == "residual" or k < correction.iterations):
            done = converged(old, residual, weight, correction)
            if correction.criterion == "residual":
                new = torch.where(done.view(-1, *[1] * (y.ndim - 1)), old, new)
        y = replace_rows(y, rows, new)
        if done is not None and k < correction.iterations and bool(done.any()):
            going = (~done).nonzero().squeeze(1)
            rows = going if isinstance(rows, slice) else rows[going]
            if not len(going):
                break
    return y


def converged(y: Tensor, residual: Tensor, weight: float, correction: Correction) -> Tensor:
    """Boolean [B]; the same for all images when the norm is over the batch."""

    def size(v: Tensor) -> Tensor:
        per_image = torch.linalg.vector_norm(v.flatten(1), dim=1)
        return per_image if correction.norm == "image" else torch.linalg.vector_norm(per_image).expand(len(v))

    if correction.criterion == "change":
        return weight * size(residual) < correction.tolerance
    return size(residual) / (size(y) + 1e-6) < correction.tolerance


def replace_rows(whole: Tensor, rows: Rows, part: Tensor) -> Tensor:
    return part if isinstance(rows, slice) else whole.index_copy(0, rows, part)
