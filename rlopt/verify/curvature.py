"""Checks of the Fisher matrix and of conjugate gradient on it."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt.linalg import assign, damped, gradient
from rlopt.rows import Row, at_most, not_applicable
from rlopt.verify.audit import ITERATIVE, MAX_CG, ROUNDING, WIDTHS, Audit, relative


def fisher_matrix(audit: Audit) -> list[Row]:
    """F of the rule: one symmetric PSD matrix, equal to J^T M J made densely.

    J is the Jacobian sample by sample, M the Hessian of the distribution's KL (`exact`) or the
    outer product of each sample's score (`empirical`).
    """
    F = audit.fisher_operator()
    V = audit.dense.directions(12)
    FV = torch.stack([F(v) for v in V])
    truth = torch.stack([audit.dense.fisher(v) for v in V])
    S = V @ FV.T
    size = torch.linalg.matrix_norm(S, 2)
    smallest = torch.linalg.eigvalsh((S + S.T) / 2)[0] / size
    return [
        at_most("F v twice: largest difference", (F(V[0]) - FV[0]).abs().max(), 0.0),
        at_most("|u.Fv - v.Fu| / |F|", (S - S.T).abs().max() / size, ROUNDING),
        Row("smallest eigenvalue / largest", float(smallest), -ROUNDING, math.inf),
        at_most("|F v - dense F v| / |F v|", relative(FV, truth), 1e-9),
    ]


def fisher_is_hessian_of_kl(audit: Audit) -> list[Row]:
    """F v = d/de grad KL(pi_old || pi at theta + e v), by central differences."""
    if audit.setting("fisher") != "exact":
        return [not_applicable("the empirical Fisher matrix is no Hessian")]
    with torch.no_grad():
        old = audit.policy.dist(audit.policy.dist_params(audit.batch.obs).clone())

    def slope(delta: Tensor) -> Tensor:
        assign(audit.parameters, audit.theta + delta)
        kl = audit.batch.expect(kl_divergence(old, audit.policy(audit.batch.obs)))
        g = gradient(kl, audit.parameters)
        audit.restore()
        return g

    F, V = audit.fisher_operator(), audit.dense.directions(6)
    FV = [F(v) for v in V]  # before the parameters move under F's graph
    errors = [  # the best width: a wide one may cross a kink (relu), a wrong F is wrong at all
        min(relative((slope(e * v) - slope(-e * v)) / (2 * e), Fv) for e in WIDTHS)
        for v, Fv in zip(V, FV, strict=True)
    ]
    return [at_most("|finite difference - F v| / |F v|", max(errors), 1e-5)]


def conjugate_gradient(audit: Audit) -> list[Row]:
    """CG on (F + damping I) x = g: its residual, the dense solution, and its optimality.

    The k-th iterate has the least A-norm error of its Krylov space (Nocedal & Wright, theorem 5.2),
    which a residual and direction that share memory spoil; an absolute tolerance spoils
    cg(A, c g) = c cg(A, g).
    """
    damping = audit.damping
    A, g = damped(audit.fisher_operator(), damping), audit.dense.gradient
    truth = audit.dense.solve(g, damping)
    converged = audit.conjugate_gradient(A, g, MAX_CG, 1e-10)

    def oracle(v: Tensor) -> Tensor:
        return audit.dense.fisher(v) + damping * v

    def norm(x: Tensor) -> float:
        return float(x.dot(oracle(x)).clamp(min=0).sqrt())

    basis = [g / g.norm()]
    errors, best = [norm(truth)], [norm(truth)]
    for k in range(1, 9):
        Q = torch.stack(basis, dim=1)
        AQ = torch.stack([oracle(q) for q in basis], dim=1)
        best.append(norm(Q @ torch.linalg.solve(Q.T @ AQ, Q.T @ g) - truth))
        errors.append(norm(audit.conjugate_gradient(A, g, k, 0.0).x - truth))
        new = oracle(basis[-1])
        for _ in range(2):  # Gram-Schmidt twice is enough
            new = new - Q @ (Q.T @ new)
        basis.append(new / new.norm())
    growth = max(b / a for a, b in itertools.pairwise(errors) if a > 1e-9 * errors[0])
    # Its directions lose their orthogonality to rounding as the error falls: judged down to 1%.
    excess = max(a / b for a, b in zip(errors, best, strict=True) if b > 0.01 * best[0])

    iterations, tolerance = audit.setting("cg_iterations"), audit.setting("cg_tolerance")
    x = audit.conjugate_gradient(A, g, iterations, tolerance).x
    c = 2.0**-40  # a power of two scales without rounding, which CG would amplify
    tiny = audit.conjugate_gradient(A, c * g, iterations, tolerance).x / c
    return [
        at_most("|g - A x| / |g|", relative(oracle(converged.x), g), 1e-9),
        at_most("|x - dense x| / |dense x|", relative(converged.x, truth), ITERATIVE),
        Row("A-norm error, largest growth", growth, 0.0, 1 + ROUNDING),
        Row("A-norm error / best of Krylov space", excess, 1 - 1e-3, 1 + 1e-3),
        at_most("|cg(c g) / c - cg(g)|, c = 2^-40, relative", relative(tiny, x), ITERATIVE),
    ]
