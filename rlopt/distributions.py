"""Action distributions made from one parameter vector [B, k].

Each knows its Fisher matrix M in these parameters as a product `fisher_product(u) = M u`; a
distribution without one works too (see fisher.py). They are written out because torch's own spend
several times the arithmetic's time on small batches. More of them, for Box alone: box.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.distributions.kl import register_kl
from torch.nn.functional import logsigmoid

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
MASKED = -1e30  # the logit of an action that must not be: its exp is 0, and 0 times it no NaN


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


class Bernoulli(Distribution):
    """Independent bits [n], each 1 with probability sigmoid(logit), from logits [B, n]."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)
        self.logits = logits

    @cached_property
    def log_probs(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of 0 and of 1, each [B, n]; finite where a probability underflows."""
        return logsigmoid(-self.logits), logsigmoid(self.logits)

    @property
    def probs(self) -> Tensor:
        """Probabilities of 1 [B, n]."""
        return self.logits.sigmoid()

    @property
    def mode(self) -> Tensor:
        """The most probable bits [B, n]."""
        return (self.logits > 0).long()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Bits [*, B, n]."""
        uniform = self.probs.new_empty(*sample_shape, *self.probs.shape).uniform_()
        return (uniform < self.probs).long()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of bits [*, B, n]: [*, B]."""
        zero, one = self.log_probs
        return torch.where(value > 0.5, one, zero).sum(-1)

    def entropy(self) -> Tensor:
        """-E[ln pi(a)] [B]."""
        return -self._mean_of(*self.log_probs)

    def _mean_of(self, at_zero: Tensor, at_one: Tensor) -> Tensor:
        """The expectation [B] of a sum over bits of what each is worth at 0 and at 1, [B, n]."""
        return (self.probs * at_one + (-self.logits).sigmoid() * at_zero).sum(-1)

    def fisher_product(self, u: Tensor) -> Tensor:
        """P (1 - p) u, [B, n] -> [B, n]."""
        return self.probs * (-self.logits).sigmoid() * u


@register_kl(Bernoulli, Bernoulli)
def _kl_bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    """KL(p || q) [B], summed over bits."""
    return p._mean_of(*(x - y for x, y in zip(p.log_probs, q.log_probs, strict=True)))


class Product(Distribution):
    """Independent distributions side by side; log-probability, entropy and KL are sums over them.

    An action is one row [a]: a column for each scalar part, as many as it has entries for a vector.

    Args:
        parts: their distributions, each of batch shape [B] and made from its own slice of [B, k].
        sizes: of these slices.
    """

    def __init__(self, parts: Sequence[Any], sizes: Sequence[int]) -> None:
        self.parts, self.sizes = parts, list(sizes)
        self.columns = [part.event_shape.numel() for part in parts]
        event_shape = torch.Size([sum(self.columns)])
        super().__init__(parts[0].batch_shape, event_shape, validate_args=False)

    def _join(self, actions: list[Tensor]) -> Tensor:
        """Actions of the parts, [*, B] or [*, B, n], to [*, B, a]; real if one of them is."""
        scalar = [part.event_shape == () for part in self.parts]
        rows = [x.unsqueeze(-1) if s else x for x, s in zip(actions, scalar, strict=True)]
        return torch.cat(rows, dim=-1)

    @property
    def mode(self) -> Tensor:
        """The most probable action of every part [B, a]."""
        return self._join([part.mode for part in self.parts])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions [*, B, a]."""
        return self._join([part.sample(torch.Size(sample_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of actions [*, B, a]: [*, B]."""
        values = value.split(self.columns, dim=-1)
        return sum_of(
            part.log_prob(x.squeeze(-1) if part.event_shape == () else x)
            for part, x in zip(self.parts, values, strict=True)
        )

    def entropy(self) -> Tensor:
        """-E[ln pi(a)] [B]."""
        return sum_of(part.entropy() for part in self.parts)

    def fisher_product(self, u: Tensor) -> Tensor:
        """M u of a block-diagonal M, [B, k] -> [B, k]."""
        blocks = zip(self.parts, u.split(self.sizes, dim=-1), strict=True)
        return torch.cat([part.fisher_product(x) for part, x in blocks], dim=-1)


@register_kl(Product, Product)
def _kl_product(p: Product, q: Product) -> Tensor:
    """KL(p || q) [B]."""
    return sum_of(kl_divergence(x, y) for x, y in zip(p.parts, q.parts, strict=True))


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor of equal shapes."""
    return torch.stack(list(tensors)).sum(0)
