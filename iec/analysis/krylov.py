"""Largest singular value and spectral radius of a matrix that is known by its products with vectors alone.

Both are read off a small matrix, the projection on the space that k products span (Golub & Van Loan, Matrix Computations, 10.1 and
10.4). k steps of plain power iteration lie in the same space, so that its estimate of the singular value is never better; it needs
about ln(d) / (4 ln r) products of each kind to see one singular value r times above d others (41 for d = 3072 and r = 1.05).

Everything is batched: an image has a matrix of its own, and vectors are [B, ...] like the images.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v [B, ...] -> M v (or M^T v), image by image."""

TOLERANCE = 1e-3
MAX_ITERATIONS = 40
QUIET = 3
"""An estimate has converged after so many successive relative changes within the tolerance."""
COMPLETE = 1e-12
"""What is left of a vector, relative to it, in a space that holds it: rounding error of float64."""


class Estimate(NamedTuple):
    """value [B]; converged bool [B]; iterations: products of each kind that were made."""

    value: Tensor
    converged: Tensor
    iterations: int


def largest_singular_value(
    product: Product, transposed: Product, start: Tensor, tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS
) -> Estimate:
    """||M||_2 of each image's matrix, from below: the power method on M^T M, accelerated. start: any [B, ...], e.g. noise."""
    values = (torch.linalg.matrix_norm(small, 2) for small in bidiagonal(product, transposed, start))
    return converge(values, tolerance, max_iterations)


def bidiagonal(product: Product, transposed: Product, start: Tensor) -> Iterator[Tensor]:
    """Golub-Kahan: M V_k = U_k B_k with orthonormal U_k, V_k. Yields B_k [B, k, k] for k = 1, 2, ..; ||B_k|| rises to ||M||."""
    shape, v = start.shape, _unit(start.flatten(1), start.flatten(1))[0]
    right, left, columns = [v], list[Tensor](), list[Tensor]()
    while True:
        image = product(right[-1].view(shape)).flatten(1).to(v.dtype)
        coefficients, rest = _orthogonalise(image, left)
        u, alpha = _unit(rest, image)
        left.append(u)
        columns.append(torch.cat([coefficients, alpha], 1))  # the image of the newest v in u_1 .. u_k
        yield _fill(columns, len(columns))
        image = transposed(u.view(shape)).flatten(1).to(v.dtype)
        right.append(_unit(_orthogonalise(image, right)[1], image)[0])


def hessenberg(product: Product, start: Tensor) -> Iterator[Tensor]:
    """Arnoldi: M V_k = V_{k+1} H_k with orthonormal V. Yields H_k [B, k + 1, k] for k = 1, 2, ..

    ||H_k|| <= ||M||, and the eigenvalues of its upper square tend to the outer ones of M. Needs no transposed products. The space
    of c I + b M is that of M, where H_k becomes c I + b H_k (`shifted`): one run serves all of them.
    """
    shape, v = start.shape, _unit(start.flatten(1), start.flatten(1))[0]
    basis, columns = [v], list[Tensor]()
    while True:
        image = product(basis[-1].view(shape)).flatten(1).to(v.dtype)
        coefficients, rest = _orthogonalise(image, basis)
        v, size = _unit(rest, image)
        basis.append(v)
        columns.append(torch.cat([coefficients, size], 1))
        yield _fill(columns, len(columns) + 1)


def shifted(h: Tensor, c: float, b: float) -> Tensor:
    """H_k of c I + b M from that of M. Columns after the space was complete stay zero."""
    going = (h.diagonal(offset=-1, dim1=1, dim2=2)[:, :-1] > 0).to(h.dtype).cumprod(1)  # B x k - 1
    exists = torch.nn.functional.pad(going, (1, 0), value=1.0)
    return c * torch.eye(*h.shape[1:], dtype=h.dtype, device=h.device) * exists[:, None] + b * h


def spectral_radius(h: Tensor) -> Tensor:
    """Largest |eigenvalue| of the upper square of H_k [B, k + 1, k]: [B]."""
    return torch.linalg.eigvals(h[:, :-1]).abs().amax(1)


def converge(values: Iterator[Tensor], tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS) -> Estimate:
    """The first estimates [B] of a sequence that have settled for every image, or those of the last iteration."""
    history: list[Tensor] = []
    for value in values:
        history.append(value)
        done = settled(history, tolerance)
        if bool(done.all()) or len(history) >= max_iterations:
            break
    return Estimate(history[-1], done, len(history))


def settled(history: list[Tensor], tolerance: float) -> Tensor:
    """Bool [B]: the last `QUIET` relative changes were all within the tolerance."""
    if len(history) <= QUIET:
        return torch.zeros_like(history[-1], dtype=torch.bool)
    recent = torch.stack(history[-QUIET - 1 :])
    return ((recent[1:] - recent[:-1]).abs() <= tolerance * recent[1:].abs()).all(0)


def _orthogonalise(v: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(coefficients [B, k], rest [B, d]) of v in an orthonormal basis; twice, which is enough to rounding error."""
    if not basis:
        return v[:, :0], v
    vectors = torch.stack(basis, 1)  # B x k x d
    first = torch.einsum("bkd,bd->bk", vectors, v)
    v = v - torch.einsum("bkd,bk->bd", vectors, first)
    second = torch.einsum("bkd,bd->bk", vectors, v)
    return first + second, v - torch.einsum("bkd,bk->bd", vectors, second)


def _unit(rest: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """(rest / |rest|, |rest| [B, 1]); zeros where the rest of ``whole`` is its rounding error: that image's space is complete."""
    size = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
    complete = size <= COMPLETE * torch.linalg.vector_norm(whole, dim=1, keepdim=True)
    return torch.where(complete, 0.0, rest / torch.where(complete, 1.0, size)), torch.where(complete, 0.0, size)


def _fill(columns: list[Tensor], rows: int) -> Tensor:
    """Columns [B, .] of growing length as one matrix [B, rows, k], zero below."""
    return torch.stack([torch.nn.functional.pad(c, (0, rows - c.shape[1])) for c in columns], dim=2)
