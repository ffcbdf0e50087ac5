"""Trust region policy optimisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt import check
from rlopt.fisher import fisher_operator
from rlopt.linalg import assign, conjugate_gradient, damped, flatten, solve_dense
from rlopt.line_search import backtrack
from rlopt.types import Batch, Policy


class TRPO:
    """max L(theta) = E[pi_theta / pi_k A]  subject to  E[KL(pi_k || pi_theta)] <= max_kl.

    The natural gradient step to the edge of the quadratic trust region, then a backtracking line
    search on the true functions: a fraction of the step is taken only where the surrogate L
    improves *and* the KL is within max_kl. Where none is, the parameters are restored and
    `algo/rejected_*` says why.

    Args:
        policy: the policy to move.
        max_kl: radius of the trust region.
        kl: `analytic`, or `sampled`: the lecture's mean of ln pi_k(a | s) - ln pi_theta(a | s),
            which can be negative and then constrains nothing.
        fisher: `exact` (expectation over actions) or `empirical` (scores of the sampled actions).
        fisher_samples: about how many transitions F is the mean over, drawn once an update from
            those of the batch, or None for all of them.
        solver: `cg`, or `dense` (Cholesky, for some thousand parameters at most).
        damping: lambda in F + lambda I.
        cg_iterations: products with F at the most.
        cg_tolerance: relative residual at which conjugate gradient stops.
        backtrack_ratio: factor between one try of the line search and the next.
        backtrack_tries: tries at the most.

    Source: lecture, "Trust region policy optimization" and "Estimating TRPO"; Schulman et al. 2015,
    appendix C.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_kl: float,
        kl: str,
        fisher: str,
        fisher_samples: int | None,
        solver: str,
        damping: float,
        cg_iterations: int,
        cg_tolerance: float,
        backtrack_ratio: float,
        backtrack_tries: int,
    ) -> None:
        check.positive(max_kl=max_kl)
        check.one_of(["analytic", "sampled"], kl=kl)
        check.one_of(["exact", "empirical"], fisher=fisher)
        if fisher_samples is not None:
            check.whole(fisher_samples=fisher_samples)
        check.one_of(["cg", "dense"], solver=solver)
        check.non_negative(damping=damping)
        check.relative_tolerance(cg_tolerance=cg_tolerance)
        check.whole(cg_iterations=cg_iterations, backtrack_tries=backtrack_tries)
        check.open_fraction(backtrack_ratio=backtrack_ratio)
        self.policy = policy
        self.max_kl = max_kl
        self.kl = kl
        self.fisher = fisher
        self.fisher_samples = fisher_samples
        self.solver = solver
        self.damping = damping
        self.cg_iterations = cg_iterations
        self.cg_tolerance = cg_tolerance
        self.backtrack_ratio = backtrack_ratio
        self.backtrack_tries = backtrack_tries

    def step(self, batch: Batch) -> dict[str, float]:
        """One trust region step on the batch."""
        parameters = list(self.policy.parameters())
        theta = flatten(parameters).detach()
        with torch.no_grad():
            old = self.policy(batch.obs)
            old_log_prob = old.log_prob(batch.action)

        # The gradient of L at theta_k is g = grad J = E[grad ln pi(a | s) A(s, a)]
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

        # The full step reaches the edge of the region d^T (F + lambda I) d / 2 <= max_kl, with
        # A d = g - residual; a zero gradient asks for none
        slope, curvature = float(g.dot(d)), float(d.dot(g - solution.residual))
        eta = (2 * self.max_kl / curvature) ** 0.5 if curvature > 0 else 0.0

        @torch.no_grad()
        def reason_to_reject(scale: float) -> str | None:
            assign(parameters, theta + scale * eta * d)
            new = self.policy(batch.obs)
            new_log_prob = new.log_prob(batch.action)
            if self.kl == "analytic":
                kl = batch.expect(kl_divergence(old, new))
            else:
                kl = batch.expect(old_log_prob - new_log_prob)
            ratio = (new_log_prob - old_log_prob).exp()
            gain = batch.expect((ratio - 1) * batch.advantage)  # L(theta) - L(theta_k)
            if not kl <= self.max_kl:  # also where it is nan
                return "kl"
            if not gain > 0:
                return "surrogate"
            return None

        search = backtrack(reason_to_reject, self.backtrack_ratio, self.backtrack_tries)
        if search.scale == 0:
            assign(parameters, theta)

        step = search.scale * eta
        damping_share = self.damping * float(d.dot(d)) / curvature if curvature > 0 else 0.0
        return {
            "algo/grad_norm": float(g.norm()),
            "algo/step_size": step,
            "algo/predicted_kl": 0.5 * step**2 * curvature * (1 - damping_share),
            "algo/damping_share": damping_share,
            "algo/predicted_gain": step * slope,
            "algo/cg_iterations": solution.iterations,
            "algo/cg_residual": solution.relative_residual,
            "algo/line_search_scale": search.scale,
            "algo/line_search_tries": search.tries,
            "algo/rejected_for_kl": search.rejected["kl"],
            "algo/rejected_for_surrogate": search.rejected["surrogate"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Empty: the rule remembers nothing between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
