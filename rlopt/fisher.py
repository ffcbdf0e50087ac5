"""The Fisher matrix of a policy as an operator, F = E[J^T M J].

J is the Jacobian of the distribution's parameters in the policy's, M a small matrix per sample:

- exact: M is the Fisher matrix of the distribution, the expectation over its actions. F is then
  also the Hessian of KL(pi_old || pi) at pi = pi_old, and depends on the states only.
- empirical: M = u u^T with u the score of the *sampled* action in the distribution's parameters, so
  that J^T u is grad ln pi(a | s) and F = E[grad ln pi (grad ln pi)^T], one outer product for each
  step, as the lecture estimates it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt.linalg import Operator, jacobian_metric_operator, sum_operator
from rlopt.types import Batch, Policy


def fisher_operator(policy: Policy, batch: Batch, kind: str) -> Operator:
    """The operator v -> F v on flat parameter vectors [P], one fixed symmetric PSD matrix.

    Args:
        policy: its current parameters are those at which F is taken.
        batch: states, and for `empirical` actions, that the expectation runs over.
        kind: `exact` or `empirical`.

    Source: lecture, "NPG: a leading order equivalent program" (definition of F) and "Hessian of the
    KL divergence".
    """
    parameters = list(policy.parameters())
    metric = {"exact": exact_metric, "empirical": empirical_metric}[kind]

    def part(chunk: Batch) -> Operator:
        params = policy.dist_params(chunk.obs)
        return jacobian_metric_operator(params, parameters, metric(policy, params, chunk))

    parts = [partial(part, chunk) for chunk in batch.chunks()]
    scale = batch.horizon / batch.count
    F = sum_operator(parts, keep=batch.chunk_size is None or len(parts) == 1)
    return lambda v: scale * F(v)


def exact_metric(policy: Policy, params: Tensor, batch: Batch) -> Operator:
    """The product u -> M u on [B, k], with M the Fisher matrix of the distribution."""
    dist = policy.dist(params.detach())
    closed_form = getattr(dist, "fisher_product", None)
    return closed_form if closed_form is not None else kl_hessian_metric(policy, params)


def kl_hessian_metric(policy: Policy, params: Tensor) -> Operator:
    """The same M as the Hessian of KL(old || new), for distributions without a closed form.

    Autograd must be able to differentiate their KL twice at new = old: not so with an |x| in it.
    """
    new = params.detach().requires_grad_()
    kl = kl_divergence(policy.dist(params.detach()), policy.dist(new)).sum()
    (kl_gradient,) = torch.autograd.grad(kl, new, create_graph=True)
    return lambda u: torch.autograd.grad(kl_gradient, new, u, retain_graph=True)[0]


def empirical_metric(policy: Policy, params: Tensor, batch: Batch) -> Operator:
    """The product u -> s (s . u) on [B, k], with s the score of the sampled action."""
    leaf = params.detach().requires_grad_()
    log_prob = policy.dist(leaf).log_prob(batch.action).sum()
    (score,) = torch.autograd.grad(log_prob, leaf)
    return lambda u: score * (score * u).sum(-1, keepdim=True)
