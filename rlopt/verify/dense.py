"""The independent answers on a few dozen samples, from Jacobians made entry by entry.

Nothing here shares code with what it judges: M is autograd's Hessian of the distribution's KL, KLs
are sums over actions or quadrature, and linear systems are solved through a dense factor of F.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from rlopt.distributions import Categorical, DiagonalGaussian
from rlopt.linalg import flatten
from rlopt.types import Batch, Policy


class Dense:
    """Gradient and Fisher matrix F = E[J^T M J] of a policy on a batch, at its parameters of now.

    Args:
        policy: any policy of the package's contract.
        parameters: those of the actor, P numbers in all.
        batch: B transitions; B * k * P numbers are kept.
        kind: of Fisher matrix, `exact` or `empirical`.
    """

    def __init__(self, policy: Policy, parameters: list[Tensor], batch: Batch, kind: str) -> None:
        self.policy, self.parameters, self.batch, self.kind = policy, parameters, batch, kind
        self.jacobian = self._jacobian()
        self.score = self._score()
        self.metric = self._metric()

    def _jacobian(self) -> Tensor:
        """Derivatives of dist_params in theta, [B, k, P], one backward pass for each entry."""
        params = self.policy.dist_params(self.batch.obs)
        rows = [
            flatten(torch.autograd.grad(entry, self.parameters, retain_graph=True))
            for entry in params.reshape(-1)
        ]
        return torch.stack(rows).view(*params.shape, -1)

    def _score(self) -> Tensor:
        """Derivatives of ln pi(a | s) in dist_params, [B, k]."""
        leaf = self.policy.dist_params(self.batch.obs).detach().requires_grad_()
        log_prob = self.policy.dist(leaf).log_prob(self.batch.action)
        return torch.autograd.grad(log_prob.sum(), leaf)[0]

    def _metric(self) -> Tensor:
        """M, [B, k, k]: the Hessian of KL(old || new) at old, or the score's outer product."""
        if self.kind == "empirical":
            return self.score[:, :, None] * self.score[:, None, :]
        return kl_hessian(self.policy, self.policy.dist_params(self.batch.obs))

    @cached_property
    def gradient(self) -> Tensor:
        """E[A grad ln pi], [P]."""
        per_sample = torch.einsum("bkp,bk->bp", self.jacobian, self.score)
        return self.batch.horizon * (self.batch.advantage[:, None] * per_sample).mean(0)

    def fisher(self, v: Tensor) -> Tensor:
        """F v by the dense Jacobian, for v [P]."""
        Jv = torch.einsum("bkp,p->bk", self.jacobian, v)
        MJv = torch.einsum("bkl,bl->bk", self.metric, Jv)
        return self.batch.horizon / len(self.batch) * torch.einsum("bkp,bk->p", self.jacobian, MJv)

    @cached_property
    def factor(self) -> Tensor:
        """U [P, Bk] with F = U U^T."""
        values, vectors = torch.linalg.eigh(self.metric)
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]
        U = torch.einsum("bkp,bkl->pbl", self.jacobian, root).flatten(1)
        return (self.batch.horizon / len(self.batch)) ** 0.5 * U

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(F + damping I)^-1 b by a dense solve in the space of the samples (Woodbury)."""
        U = self.factor
        inner = damping * torch.eye(U.shape[1], dtype=U.dtype, device=U.device) + U.T @ U
        return (b - U @ torch.linalg.solve(inner, U.T @ b)) / damping

    def directions(self, count: int) -> Tensor:
        """Fixed random unit vectors [count, P], half of them in the range of F."""
        generator = torch.Generator().manual_seed(1)
        V = torch.randn(count, self.jacobian.shape[-1], generator=generator)
        V = V.to(self.jacobian)
        for i in range(0, count, 2):
            V[i] = self.fisher(V[i])
        return V / V.norm(dim=1, keepdim=True)


def kl_hessian(policy: Policy, params: Tensor) -> Tensor:
    """The Hessian of KL(old || new) in new, at old, for parameters [B, k]: [B, k, k]."""
    leaf, slope = kl_slope(policy, params)
    columns = [torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0] for c in slope.T]
    return torch.stack(columns, dim=1)


def kl_hessian_diagonal(policy: Policy, params: Tensor) -> Tensor:
    """Its diagonal, [B, k]."""
    leaf, slope = kl_slope(policy, params)
    columns = (torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0] for c in slope.T)
    return torch.stack([column[:, i] for i, column in enumerate(columns)], dim=1)


def kl_slope(policy: Policy, params: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of parameters [B, k] and the gradient of KL(params || copy) in it, with a graph."""
    fixed = params.detach()
    leaf = fixed.clone().requires_grad_()
    kl = kl_divergence(policy.dist(fixed), policy.dist(leaf)).sum()
    (slope,) = torch.autograd.grad(kl, leaf, create_graph=True)
    return leaf, slope


def is_categorical(dist: Distribution) -> TypeGuard[Categorical | torch.distributions.Categorical]:
    """Whether it is ours or torch's."""
    return isinstance(dist, Categorical | torch.distributions.Categorical)


def is_gaussian(dist: Distribution) -> bool:
    """Whether its components are independent normal variables: ours or torch's."""
    base = dist.base_dist if isinstance(dist, Independent) else dist
    return isinstance(base, DiagonalGaussian | Normal)


def has_sum(dist: Distribution) -> bool:
    """Whether expectations over its actions are a sum, or exact by quadrature."""
    return is_gaussian(dist) or is_categorical(dist)


@torch.no_grad()
def brute_kl(old: Distribution, new: Distribution) -> Tensor:
    """KL(old || new) [B] as E_old[ln old - ln new]: a sum, quadrature, or else many samples.

    Samples estimate E[ln p - ln q + q / p - 1], whose error falls with the KL (Schulman 2020,
    "Approximating KL divergence").
    """
    if is_categorical(old):
        actions = torch.arange(old.probs.shape[-1], device=old.probs.device)
        p, q = (
            torch.stack([d.log_prob(a.expand(d.batch_shape)) for a in actions]) for d in (old, new)
        )
        return (p.exp() * (p - q)).sum(0)
    if is_gaussian(old):
        return gaussian_kl(old, new)
    a = old.sample(torch.Size([max(100, 300_000 // old.batch_shape.numel())]))
    log_ratio = new.log_prob(a) - old.log_prob(a)
    return (log_ratio.expm1() - log_ratio).mean(0)


def gaussian_kl(old: Distribution, new: Distribution) -> Tensor:
    """KL [B] by Gauss-Hermite, one component at a time: ln old - ln new is a sum over components.

    Exact, as each term is quadratic in the action.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    at_mean = total = old.log_prob(old.mean) - new.log_prob(old.mean)
    for i in range(old.mean.shape[-1]):
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            a = old.mean.clone()
            a[..., i] += old.stddev[..., i] * node
            total = total + weight * (old.log_prob(a) - new.log_prob(a) - at_mean)
    return total
