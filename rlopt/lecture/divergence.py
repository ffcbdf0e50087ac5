"""The KL-divergence between policies, its expansion, and the Fisher matrix in it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.func import grad, jacrev, vmap

from rlopt import tabular
from rlopt.distributions import Categorical, DiagonalGaussian
from rlopt.enumeration import enumerate_trajectories, example
from rlopt.fisher import fisher_operator
from rlopt.lecture.results import Result, gap, largest, order, random_pi, random_steps
from rlopt.linalg import dense
from rlopt.rows import Row, at_most


def kl_is_a_divergence(seed: int) -> Result:
    """Slide "KL-divergence: measures the distance between two distributions": >= 0, 0 iff equal.

    By Pinsker's inequality KL >= 2 TV^2, so that KL = 0 leaves no distance. The Gaussian's is
    |mu_1 - mu_2|^2 / 2 sigma^2.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1000, 5, generator=generator, dtype=torch.float64)
    p, q = Categorical(logits[0]), Categorical(logits[1])
    tv = (p.probs - q.probs).abs().sum(-1) / 2
    mu_1, mu_2 = torch.randn(2, 1000, 3, generator=generator, dtype=torch.float64)
    log_std = torch.randn(1000, 1, generator=generator, dtype=torch.float64).expand(-1, 3)
    gaussian = kl_divergence(
        DiagonalGaussian(torch.cat([mu_1, log_std], -1)),
        DiagonalGaussian(torch.cat([mu_2, log_std], -1)),
    )
    closed_form = (mu_1 - mu_2).square().sum(-1) / (2 * log_std[:, 0].exp() ** 2)
    slack = (kl_divergence(p, q) - 2 * tv**2).min()
    return Result([
        Row("smallest KL - 2 TV^2 of 1000 pairs", float(slack), 0.0, np.inf),
        at_most("KL(P | P)", kl_divergence(p, p).abs().max(), 1e-15),
        at_most("Gaussian against closed form", gap(gaussian, closed_form), 1e-12),
    ])  # fmt: skip


def trajectory_kl_sums_over_steps(seed: int) -> Result:
    """Slide "The regularization term is": KL(rho | rho~) = E_tau sum_h ln pi / pi~.

    Against sum_tau rho ln rho / rho~ over all trajectories.
    """
    ex = example(seed)
    new, taus = random_pi(4, 3, seed), enumerate_trajectories(ex.mdp)
    old_log, new_log = taus.log_prob(ex.pi), taus.log_prob(new)
    definition = (old_log.exp() * (old_log - new_log)).sum()
    with torch.no_grad():  # the package's, on a batch: expect(KL(pi | pi~)) and the sampled one
        old_dist, new_dist = ex.policy(ex.batch.obs), Categorical((ex.batch.obs @ new).log())
        analytic = ex.batch.expect(kl_divergence(old_dist, new_dist))
        log_ratio = old_dist.log_prob(ex.batch.action) - new_dist.log_prob(ex.batch.action)
        sampled = ex.batch.expect(log_ratio)
    exact = tabular.trajectory_kl(ex.mdp, ex.pi, new)
    return Result([
        at_most("exact, against all trajectories", gap(exact, definition), 1e-12),
        at_most("mean of analytic KL on a batch", gap(analytic, definition), 1e-12),
        at_most("mean of ln pi / pi~ on a batch", gap(sampled, definition), 1e-12),
    ])  # fmt: skip


def kl_gradient_is_zero(seed: int) -> Result:
    """Slide "The gradient of the KL-divergence is zero at theta^k": E_tau grad ln rho(tau) = 0."""
    ex = example(seed)
    taus = enumerate_trajectories(ex.mdp)
    scores = jacrev(lambda theta: taus.log_prob(ex.at(theta)))(ex.theta)
    return Result([
        at_most("grad KL at theta_k", grad(ex.kl)(ex.theta).abs().max(), 1e-12),
        at_most("E_tau grad ln rho", (taus.log_prob(ex.pi).exp() @ scores).abs().max(), 1e-12),
        Row("|grad ln rho(tau)|, largest", float(scores.abs().max()), 0.1, np.inf),
    ])  # fmt: skip


def kl_hessian_is_fisher(seed: int) -> Result:
    """Slide "Let's compute the Hessian of the KL-divergence at theta^k": = F = -E_tau hess ln rho.

    The slide's second line lacks the minus sign that its third has.
    """
    ex = example(seed)
    taus = enumerate_trajectories(ex.mdp)
    rho = taus.log_prob(ex.pi).exp()
    F = tabular.fisher_matrix(ex.mdp, ex.policy)

    def mean_log_likelihood(theta: Tensor) -> Tensor:  # averaged with rho of theta_k
        return rho @ taus.log_prob(ex.at(theta))

    operators = {
        kind: dense(fisher_operator(ex.policy, ex.batch, kind), ex.theta)
        for kind in ("exact", "empirical")
    }
    return Result([
        at_most("Hessian of the trajectory KL", gap(jacrev(grad(ex.kl))(ex.theta), F), 1e-12),
        at_most("-E_tau hess ln rho", gap(-jacrev(grad(mean_log_likelihood))(ex.theta), F), 1e-12),
        at_most("fisher_operator, exact", gap(operators["exact"], F), 1e-12),
        at_most("fisher_operator, empirical", gap(operators["empirical"], F), 1e-12),
    ])  # fmt: skip


def fisher_is_a_sum_over_steps(seed: int) -> Result:
    """Slide "NPG: A “leading order” equivalent program to TRPO": F sums over the steps.

    The score of the whole trajectory, squared and averaged over all trajectories, equals the sum of
    the steps' squares: the cross terms vanish in expectation, and only there.
    """
    ex = example(seed)
    taus = enumerate_trajectories(ex.mdp)
    rho = taus.log_prob(ex.pi).exp()
    scores = jacrev(lambda theta: taus.log_prob(ex.at(theta)))(ex.theta)
    whole = torch.einsum("n,np,nq->pq", rho, scores, scores)
    steps = dense(fisher_operator(ex.policy, ex.batch, "empirical"), ex.theta)
    return Result([
        at_most("exact F against whole trajectories",
                gap(tabular.fisher_matrix(ex.mdp, ex.policy), whole), 1e-12),
        at_most("fisher_operator against them", gap(steps, whole), 1e-12),
    ])  # fmt: skip


def taylor_expansion_of_the_constraint(seed: int) -> Result:
    """Slide "Taylor Expansion on the Constraint": KL = 1/2 dtheta^T F dtheta + O(|dtheta|^3).

    The error of a size is the largest of 20 random directions.
    """
    ex = example(seed)
    F = dense(fisher_operator(ex.policy, ex.batch, "exact"), ex.theta)
    sizes = torch.logspace(-1, -3, 7, dtype=F.dtype)
    steps = random_steps(sizes, len(F), seed)
    kl = vmap(vmap(ex.kl))(ex.theta + steps)
    quadratic = 0.5 * torch.einsum("nkp,pq,nkq->nk", steps, F, steps)
    return Result([
        Row("order of KL", order(sizes, largest(kl)), 1.9, 2.1),
        Row("order of the error", order(sizes, largest(kl - quadratic)), 2.9, 3.1),
    ])  # fmt: skip
