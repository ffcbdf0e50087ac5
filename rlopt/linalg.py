"""Linear algebra with operators: a symmetric matrix A is a function v -> A v.

Everything works on flat vectors [P]; `flatten` and `assign` go between these and a network's
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlopt.distributed import total, world_size

Operator = Callable[[Tensor], Tensor]
PASS_ROWS = 4096  # through a network at a time: what its layers leave then stays in the cache
MANY_ROWS = 8 * PASS_ROWS  # more than most batches have
GRAPH_BYTES = 2**31  # for the graphs that are in memory at a time, where nothing else is said
GRAPHS = 4  # J v keeps so many times what a backward pass does


@dataclass(frozen=True)
class Solution:
    """A solution x of A x = b and how it was reached.

    Attributes:
        x: [P].
        residual: b - A x, [P].
        iterations: products with A that were spent.
        relative_residual: ||b - A x|| / ||b||, 0 where b = 0.
    """

    x: Tensor
    residual: Tensor
    iterations: int
    relative_residual: float


def conjugate_gradient(A: Operator, b: Tensor, max_iterations: int, tolerance: float) -> Solution:
    """Solve A x = b for a symmetric positive definite A, from x = 0.

    The tolerance is relative, ||r|| <= tolerance * ||b||, so that cg(A, c b) = c cg(A, b) however
    small the gradient b has become. Stops early where A's curvature along the direction is not
    positive (rounding, or an operator that is only semidefinite) and returns the iterate before it.

    Source: Nocedal & Wright, Numerical Optimization, algorithm 5.2.
    """
    x = torch.zeros_like(b)
    b_norm = b.norm()
    if b_norm == 0:
        return Solution(x, b, 0, 0.0)
    r = b.clone()  # residual b - A x
    p = r.clone()  # search direction; must not share memory with r
    rr = r.dot(r)
    tolerance = max(tolerance, 10 * torch.finfo(b.dtype).eps)  # below it r is rounding
    iterations = 0
    while iterations < max_iterations and rr.sqrt() > tolerance * b_norm:
        Ap = A(p)
        iterations += 1
        curvature = p.dot(Ap)
        if not curvature > 0:
            break
        alpha = rr / curvature
        x = x + alpha * p
        r = r - alpha * Ap
        rr_next = r.dot(r)
        p = r + (rr_next / rr) * p
        rr = rr_next
    return Solution(x, r, iterations, float(rr.sqrt() / b_norm))


def std(x: Tensor, *, correction: int) -> Tensor:
    """Standard deviation of the entries of x, without overflow of their squares.

    Args:
        x: [n].
        correction: the sum of squares is divided by n - correction: 0 for the population's standard
            deviation, 1 for the sample's. The sample's is 0 for a single entry, where n - 1 is 0.
    """
    scale = power_of_two(x)
    return (x / scale).std(correction=min(correction, len(x) - 1)) * scale


def power_of_two(x: Tensor) -> Tensor:
    """A power of two near the largest |x|: dividing by it is exact, and squares can't overflow."""
    exponent = torch.frexp(x.abs().max()).exponent
    return torch.ldexp(
        torch.ones((), dtype=x.dtype, device=x.device), exponent.clamp(-100, 127) - 1
    )


def dense(A: Operator, like: Tensor) -> Tensor:
    """The matrix [P, P] of an operator on vectors like `like` [P], by P products; symmetrised."""
    matrix = torch.stack([A(e) for e in torch.eye(len(like), dtype=like.dtype, device=like.device)])
    return (matrix + matrix.T) / 2


class SingularMatrixError(ValueError):
    """A matrix has no Cholesky factor."""


def solve_dense(A: Operator, b: Tensor) -> Solution:
    """Solve A x = b by Cholesky of the explicit matrix, for small P.

    Raises:
        SingularMatrixError: A is not positive definite to working precision.
    """
    matrix = dense(A, b)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info > 0:
        raise SingularMatrixError(
            "solver=dense: the matrix is not positive definite, raise `damping` or use solver=cg"
        )
    x = torch.cholesky_solve(b[:, None], factor)[:, 0]
    residual, b_norm = b - matrix @ x, b.norm()
    relative = float(residual.norm() / b_norm) if b_norm > 0 else 0.0
    return Solution(x, residual, len(b), relative)


def jacobian_metric_operator(
    outputs: Tensor, parameters: Sequence[Tensor], metric: Operator
) -> Operator:
    """The operator v -> J^T M J v with J the Jacobian of `outputs` [B, k] in `parameters`.

    `metric` maps [B, k] -> [B, k] and is linear, symmetric and PSD. The Fisher matrix (M the Fisher
    matrix of the distribution in its own parameters) and Gauss-Newton (M = 1) are both of this
    form.

    J v takes no forward mode: J^T w is linear in w, so its derivative in w along v is J v
    (Townsend 2017, "A new trick for calculating Jacobian vector products"). The graph of J^T w is
    built once and shared by all products.
    """
    w = torch.zeros_like(outputs, requires_grad=True)
    Jt_w = flatten(torch.autograd.grad(outputs, parameters, w, create_graph=True))

    def product(v: Tensor) -> Tensor:
        (Jv,) = torch.autograd.grad(Jt_w, w, v, retain_graph=True)
        return flatten(torch.autograd.grad(outputs, parameters, metric(Jv), retain_graph=True))

    return product


def sum_operator(parts: Sequence[Callable[[], Operator]], keep: bool) -> Operator:
    """The sum of operators, each made from a part of the data, over all processes.

    With `keep` each part's graph is made once and stays in memory; otherwise it is made anew for
    every product, one part after the other.
    """
    kept = [make() for make in parts] if keep else None

    def product(v: Tensor) -> Tensor:
        operators = kept if kept is not None else (make() for make in parts)
        return total(torch.stack([A(v) for A in operators]).sum(0))

    return product


def chunk_that_fits(outputs: Callable[[int], Tensor]) -> int | None:
    """How many rows' graphs fit into memory at a time, or None where all of most batches do.

    Args:
        outputs: maps a number of rows to what a network makes of them.
    """
    sizes = []
    for rows in (1, 2):  # of which the difference is without the parameters
        kept: dict[int, int] = {}

        def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = x.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            output = outputs(rows)  # alive while its graph is counted
        sizes.append(sum(kept.values()))
        del output
    rows = GRAPH_BYTES // max(1, GRAPHS * (sizes[1] - sizes[0]))
    return None if rows >= MANY_ROWS else max(1, rows)


def damped(A: Operator, damping: float) -> Operator:
    """A + damping * I."""
    return lambda v: A(v) + damping * v


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors to one new vector [P] that shares no memory with them."""
    return torch.cat([t.reshape(-1) for t in tensors])


def gradient(scalar: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient of a scalar in `parameters`, flat [P]; the graph is kept."""
    return flatten(torch.autograd.grad(scalar, parameters, retain_graph=True))


def sum_gradient(scalars: Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The gradient [P] of a sum of scalars, each with a graph of its own, over all processes.

    A generator of scalars keeps one graph in memory at a time.
    """
    parts = [flatten(torch.autograd.grad(scalar, parameters)) for scalar in scalars]
    return total(torch.stack(parts).sum(0))


def set_gradient(parameters: Sequence[Tensor], scalar: Tensor) -> None:
    """Make the gradient of a scalar, over all processes, the `.grad` of `parameters`."""
    gradients = torch.autograd.grad(scalar, parameters)
    if world_size() > 1:
        assign_gradient(parameters, total(flatten(gradients)))
        return
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g


def assign_gradient(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Make a flat vector [P] the `.grad` of `parameters`, for an optimiser to descend."""
    sizes = [p.numel() for p in parameters]
    for p, part in zip(parameters, vector.split(sizes), strict=True):
        p.grad = part.view_as(p)


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Copy a flat vector [P] into `parameters`, which never become views of it."""
    sizes = [p.numel() for p in parameters]
    for p, part in zip(parameters, vector.split(sizes), strict=True):
        p.copy_(part.view_as(p))
