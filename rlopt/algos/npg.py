"""Natural policy gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlopt import check
from rlopt.fisher import fisher_operator
from rlopt.linalg import assign, conjugate_gradient, damped, flatten, solve_dense
from rlopt.types import Batch, Policy


class NPG:
    """theta <- theta + eta * (F + damping I)^-1 grad J.

    With g = grad J and d = (F + damping I)^-1 g, eta is either the fixed `step_size` or the closed
    form that solves

        max g . x  subject to  1/2 x^T (F + damping I) x <= max_kl,   x = eta d,  eta = sqrt(2
        max_kl / (g . d)),

    for which 1/2 x^T F x predicts the KL of the step. The lecture bounds x^T F x <= delta without
    Taylor's 1/2: its delta is 2 max_kl. Damping counts in the radius, so that the predicted KL
    stays below max_kl by damping's share.

    Args:
        policy: the policy to move.
        max_kl: radius of the trust region; used where step_size is None.
        step_size: a fixed eta in place of the closed form, or None.
        fisher: `exact` (expectation over actions) or `empirical` (scores of the sampled actions).
        fisher_samples: about how many transitions F is the mean over, drawn once an update from
            those of the batch, or None for all of them.
        solver: `cg`, or `dense` (Cholesky, for some thousand parameters at most).
        damping: lambda in F + lambda I.
        cg_iterations: products with F at the most.
        cg_tolerance: relative residual at which conjugate gradient stops.

    Source: lecture, "There is a closed form update" and "An implementation: sample based NPG";
    Kakade 2001.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_kl: float,
        step_size: float | None,
        fisher: str,
        fisher_samples: int | None,
        solver: str,
        damping: float,
        cg_iterations: int,
        cg_tolerance: float,
    ) -> None:
        check.positive(max_kl=max_kl)
        if step_size is not None:
            check.positive(step_size=step_size)
        check.one_of(["exact", "empirical"], fisher=fisher)
        if fisher_samples is not None:
            check.whole(fisher_samples=fisher_samples)
        check.one_of(["cg", "dense"], solver=solver)
        check.non_negative(damping=damping)
        check.relative_tolerance(cg_tolerance=cg_tolerance)
        check.whole(cg_iterations=cg_iterations)
        self.policy = policy
        self.max_kl = max_kl
        self.step_size = step_size
        self.fisher = fisher
        self.fisher_samples = fisher_samples
        self.solver = solver
        self.damping = damping
        self.cg_iterations = cg_iterations
        self.cg_tolerance = cg_tolerance

    def step(self, batch: Batch) -> dict[str, float]:
        """One natural gradient step on the batch."""
        parameters = list(self.policy.parameters())
        theta = flatten(parameters).detach()

        # g = grad J = E[grad ln pi(a | s) A(s, a)]
        def objective(batch: Batch) -> Tensor:
            return self.policy(batch.obs).log_prob(batch.action) * batch.advantage

        g = batch.gradient(objective, parameters)

        # d = (F + lambda I)^-1 g
        sample = batch if self.fisher_samples is None else batch.subsample(self.fisher_samples)
        F = fisher_operator(self.policy, sample, self.fisher)
        A = damped(F, self.damping)
        if self.solver == "dense":
            solution = solve_dense(A, g)
        else:
            solution = conjugate_gradient(A, g, self.cg_iterations, self.cg_tolerance)
        d = solution.x

        # eta = sqrt(2 max_kl / d^T (F + lambda I) d), where A d = g - residual and, once CG has
        # converged, d^T A d = g^T A^-1 g; a zero gradient asks for no step
        slope, curvature = float(g.dot(d)), float(d.dot(g - solution.residual))
        eta = 0.0 if curvature <= 0 else self.step_size or (2 * self.max_kl / curvature) ** 0.5
        assign(parameters, theta + eta * d)

        damping_share = 0.0 if curvature <= 0 else self.damping * float(d.dot(d)) / curvature
        return {
            "algo/grad_norm": float(g.norm()),
            "algo/step_size": eta,
            "algo/predicted_kl": 0.5 * eta**2 * curvature * (1 - damping_share),
            "algo/damping_share": damping_share,
            "algo/predicted_gain": eta * slope,
            "algo/cg_iterations": solution.iterations,
            "algo/cg_residual": solution.relative_residual,
        }

    def state_dict(self) -> dict[str, Any]:
        """Empty: the rule remembers nothing between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
