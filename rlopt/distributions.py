"""Action distributions made from one parameter vector [B, k].

Each knows its Fisher matrix M in these parameters as a product `fisher_product(u) = M u`; a
distribution without one works too (see fisher.py). They are written out because torch's own spend
several times the arithmetic's time on small batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import register_kl

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Categorical(Distribution):
    """Actions 0..k-1 from logits [B, k]; `logits` holds log-probabilities."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape[:-1], validate_args=False)
        self.logits = logits.log_softmax(-1)

    @cached_property
    def probs(self) -> Tensor:
        """Probabilities [B, k]."""
        return self.logits.exp()

    @property
    def mode(self) -> Tensor:
        """The most probable action [B]."""
        return self.logits.argmax(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions [*, B], by a race of exponential clocks with rates p.

        In the same state of torch's generator two policies choose alike but for a probability of
        2 TV / (1 + TV) at the most (TV for two actions), TV their total variation.
        """
        clocks = self.probs.new_empty(*sample_shape, *self.probs.shape).exponential_()
        return (clocks / self.probs).argmin(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of actions [*, B]: [*, B]."""
        logits = self.logits.expand(*value.shape, self.logits.shape[-1])
        return logits.gather(-1, value.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """-E[ln pi(a)] [B]; p ln p = 0 where p underflows."""
        return -(self.probs * self.logits).sum(-1)

    def fisher_product(self, u: Tensor) -> Tensor:
        """(diag(p) - p p^T) u, [B, k] -> [B, k]."""
        pu = self.probs * u
        return pu - self.probs * pu.sum(-1, keepdim=True)


@register_kl(Categorical, Categorical)
def _kl_categorical(p: Categorical, q: Categorical) -> Tensor:
    """KL(p || q) [B] from log-probabilities: finite, with a gradient, where q underflows."""
    return (p.probs * (p.logits - q.logits)).sum(-1)


class DiagonalGaussian(Distribution):
    """Real vectors [d] from [mean, log_std], [B, 2d]."""

    def __init__(self, params: Tensor) -> None:
        self._mean, self.log_std = params.chunk(2, dim=-1)
        super().__init__(params.shape[:-1], self._mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean [B, d]."""
        return self._mean

    @property
    def mode(self) -> Tensor:
        """The most probable action, which is the mean [B, d]."""
        return self._mean

    @property
    def stddev(self) -> Tensor:
        """Standard deviations [B, d]."""
        return self.log_std.exp()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions [*, B, d]: mean + std * noise, with noise that depends on the shape only."""
        shape = (*sample_shape, *self.mean.shape)
        return torch.normal(self.mean.detach().expand(shape), self.stddev.detach().expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of actions [*, B, d]: [*, B]."""
        z = (value - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + HALF_LOG_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """-E[ln pi(a)] [B]."""
        return (self.log_std + 0.5 + HALF_LOG_2PI).sum(-1)

    def fisher_product(self, u: Tensor) -> Tensor:
        """1 / sigma^2 on the mean, 2 on the log std, [B, 2d] -> [B, 2d]."""
        return u * self._fisher_diagonal

    @cached_property
    def _fisher_diagonal(self) -> Tensor:
        precision = (-2 * self.log_std).exp()
        return torch.cat([precision, torch.full_like(precision, 2.0)], dim=-1)


@register_kl(DiagonalGaussian, DiagonalGaussian)
def _kl_gaussian(p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    """KL(p || q) [B]: ln(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2, summed over d."""
    log_ratio = q.log_std - p.log_std
    squared_z = ((p.mean - q.mean) * (-q.log_std).exp()).square()
    return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + squared_z - 1)).sum(-1)
