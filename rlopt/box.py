"""Distributions on Box actions other than the diagonal Gaussian of distributions.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Beta as TorchBeta
from torch.distributions import Distribution, kl_divergence
from torch.distributions.kl import register_kl
from torch.nn.functional import softplus

from rlopt.distributions import HALF_LOG_2PI, DiagonalGaussian

NUM_NODES = 64  # of the quadrature in the entropy of a squashed Gaussian


class FullGaussian(Distribution):
    """Real vectors [d] of covariance L L^T, from [mean, ln diag L, rows of L below it], [B, k].

    L is lower triangular and k = 2 d + d (d - 1) / 2.

    Source: Magnus & Neudecker, "Matrix Differential Calculus": with A = L^-1 dL, the Fisher metric
    1/2 tr (C^-1 dC)^2 of the covariance C is ||A||^2 + sum_i A_ii^2.
    """

    def __init__(self, params: Tensor, size: int) -> None:
        rest = params.shape[-1] - 2 * size
        self._mean, self.log_diagonal, below = params.split([size, size, rest], dim=-1)
        self.rows, self.columns = torch.tril_indices(size, size, -1, device=params.device)
        self.L = torch.diag_embed(self.log_diagonal.exp()) + self._triangle(below)
        super().__init__(params.shape[:-1], self._mean.shape[-1:], validate_args=False)

    def _triangle(self, below: Tensor) -> Tensor:
        """Entries below the diagonal [B, d (d - 1) / 2] as matrices [B, d, d]."""
        d = self._mean.shape[-1]
        flat = below.new_zeros(*below.shape[:-1], d * d)
        return flat.index_copy(-1, self.rows * d + self.columns, below).unflatten(-1, (d, d))

    @property
    def mean(self) -> Tensor:
        """The mean [B, d]."""
        return self._mean

    @property
    def mode(self) -> Tensor:
        """The most probable action, which is the mean [B, d]."""
        return self._mean

    def whiten(self, x: Tensor) -> Tensor:
        """L^-1 x, [*, B, d] -> [*, B, d]."""
        return torch.linalg.solve_triangular(self.L, x.unsqueeze(-1), upper=False).squeeze(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions [*, B, d]."""
        with torch.no_grad():
            noise = torch.randn(*sample_shape, *self.mean.shape).to(self.mean)
            return self.mean + (self.L @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of actions [*, B, d]: [*, B]."""
        z = self.whiten(value - self.mean)
        return -(0.5 * z.square() + self.log_diagonal + HALF_LOG_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """-E[ln pi(a)] [B]."""
        return (self.log_diagonal + 0.5 + HALF_LOG_2PI).sum(-1)

    def fisher_product(self, u: Tensor) -> Tensor:
        """C^-1 on the mean, half the derivative of the metric above on L, [B, k] -> [B, k]."""
        d = self.mean.shape[-1]
        mean, log_diagonal, below = u.split([d, d, u.shape[-1] - 2 * d], dim=-1)
        diagonal = self.log_diagonal.exp()
        dL = torch.diag_embed(diagonal * log_diagonal) + self._triangle(below)
        A = torch.linalg.solve_triangular(self.L, dL, upper=False)
        A = A + torch.diag_embed(A.diagonal(dim1=-2, dim2=-1))
        both = torch.cat([A, self.whiten(mean).unsqueeze(-1)], dim=-1)
        G = torch.linalg.solve_triangular(self.L.mT, both, upper=True)
        on_diagonal = diagonal * G[..., :d].diagonal(dim1=-2, dim2=-1)
        return torch.cat([G[..., d], on_diagonal, G[..., self.rows, self.columns]], dim=-1)


@register_kl(FullGaussian, FullGaussian)
def _kl_full_gaussian(p: FullGaussian, q: FullGaussian) -> Tensor:
    """KL(p || q) [B] with W = L_q^-1 L_p: 1/2 (||W||^2 + |L_q^-1 (m_p - m_q)|^2 - d) - ln |W|."""
    W = torch.linalg.solve_triangular(q.L, p.L, upper=False)
    squares = W.square().sum((-2, -1)) + q.whiten(p.mean - q.mean).square().sum(-1)
    return 0.5 * (squares - p.mean.shape[-1]) + (q.log_diagonal - p.log_diagonal).sum(-1)


class SquashedGaussian(Distribution):
    """center + scale * tanh(u) in a bounded Box [d], u a diagonal Gaussian of [mean, log_std].

    tanh is a bijection, so KL and Fisher matrix are those of the Gaussian below. An action so near
    to a bound that the float type can't tell them apart counts as the last one that it can.

    Source: Haarnoja et al. 2018, "Soft actor-critic", appendix C.
    """

    def __init__(self, params: Tensor, center: Tensor, scale: Tensor) -> None:
        self.gaussian = DiagonalGaussian(params)
        self.center, self.scale = center, scale
        shapes = self.gaussian.batch_shape, self.gaussian.event_shape
        super().__init__(*shapes, validate_args=False)

    def _squash(self, u: Tensor) -> Tensor:
        return self.center + self.scale * u.tanh()

    @property
    def mode(self) -> Tensor:
        """The median [B, d], to which a mode at a bound would be no alternative."""
        return self._squash(self.gaussian.mean)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions [*, B, d]."""
        return self._squash(self.gaussian.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of actions [*, B, d]: [*, B]."""
        inside = 1 - torch.finfo(self.scale.dtype).eps
        y = ((value - self.center) / self.scale).clamp(-inside, inside)
        log_slope = (self.scale * (1 - y) * (1 + y)).log()
        return self.gaussian.log_prob(y.atanh()) - log_slope.sum(-1)

    def entropy(self) -> Tensor:
        """-E[ln pi(a)] [B], that of u and E[ln of the slope] by Gauss-Hermite quadrature."""
        nodes, weights = (torch.as_tensor(x).to(self.gaussian.mean) for x in _gauss_hermite())
        u = self.gaussian.mean.unsqueeze(-1) + self.gaussian.stddev.unsqueeze(-1) * nodes
        log_slope = 2 * (np.log(2) - u - softplus(-2 * u)) @ weights + self.scale.log()
        return self.gaussian.entropy() + log_slope.sum(-1)

    def fisher_product(self, u: Tensor) -> Tensor:
        """M u of the Gaussian below, [B, 2d] -> [B, 2d]."""
        return self.gaussian.fisher_product(u)


@cache
def _gauss_hermite() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of expectations over a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    return nodes, weights / weights.sum()


@register_kl(SquashedGaussian, SquashedGaussian)
def _kl_squashed(p: SquashedGaussian, q: SquashedGaussian) -> Tensor:
    """KL(p || q) [B]."""
    return kl_divergence(p.gaussian, q.gaussian)


class Beta(Distribution):
    """low + (high - low) * x in a bounded Box [d], x of independent Beta(alpha, beta).

    From [alpha, beta], [B, 2d]. Gamma functions are taken in float64: their differences lose
    float32's digits where alpha + beta is large.

    Source: Chou, Maturana & Scherer 2017, "Improving stochastic policy gradients in continuous
    control with deep reinforcement learning using the beta distribution".
    """

    def __init__(self, params: Tensor, low: Tensor, high: Tensor) -> None:
        self.alpha, self.beta = params.chunk(2, dim=-1)
        self.low, self.range = low, high - low
        super().__init__(params.shape[:-1], self.alpha.shape[-1:], validate_args=False)

    @cached_property
    def unit(self) -> TorchBeta:
        """The distribution of x, in float64."""
        return TorchBeta(self.alpha.double(), self.beta.double(), validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The most probable action [B, d], for alpha and beta above 1; the centre where uniform."""
        tiny = torch.finfo(self.alpha.dtype).tiny
        excess = (self.alpha - 1).clamp(min=tiny), (self.beta - 1).clamp(min=tiny)
        return self.low + self.range * excess[0] / (excess[0] + excess[1])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions [*, B, d]."""
        x = self.unit.sample(torch.Size(sample_shape)).to(self.alpha.dtype)
        return self.low + self.range * x

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of actions [*, B, d]: [*, B]."""
        eps = torch.finfo(self.alpha.dtype).eps
        x = ((value - self.low) / self.range).double().clamp(eps / 2, 1 - eps / 2)
        return (self.unit.log_prob(x) - self.range.log()).sum(-1).to(self.alpha.dtype)

    def entropy(self) -> Tensor:
        """-E[ln pi(a)] [B]."""
        return (self.unit.entropy() + self.range.log()).sum(-1).to(self.alpha.dtype)

    def fisher_product(self, u: Tensor) -> Tensor:
        """[psi'(alpha), psi'(beta)] u - psi'(alpha + beta) (u_alpha + u_beta), psi' the trigamma.

        [B, 2d] -> [B, 2d].
        """
        joint = self._trigamma[1] * sum(u.double().chunk(2, dim=-1))
        return (self._trigamma[0] * u - torch.cat([joint, joint], dim=-1)).to(u.dtype)

    @cached_property
    def _trigamma(self) -> tuple[Tensor, Tensor]:
        """Of [alpha, beta], [B, 2d], and of their sum, [B, d]."""
        a, b = self.alpha.double(), self.beta.double()
        return torch.polygamma(1, torch.cat([a, b], dim=-1)), torch.polygamma(1, a + b)


@register_kl(Beta, Beta)
def _kl_beta(p: Beta, q: Beta) -> Tensor:
    """KL(p || q) [B]: that of the unit interval, by digamma and ln Gamma."""
    return kl_divergence(p.unit, q.unit).sum(-1).to(p.alpha.dtype)
