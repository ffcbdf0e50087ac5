"""Action distributions made from one parameter vector [B, k].

Each knows its Fisher matrix M in these parameters as a product `fisher_product(u) = M u`; a
distribution without one works too (see fisher.py). Sampling, densities, entropy, mode and KL are
torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal
from torch.distributions.kl import register_kl


class Categorical(TorchCategorical):
    """Actions 0..k-1 from logits [B, k]."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)

    def fisher_product(self, u: Tensor) -> Tensor:
        """(diag(p) - p p^T) u, [B, k] -> [B, k]."""
        pu = self.probs * u
        return pu - self.probs * pu.sum(-1, keepdim=True)


@register_kl(Categorical, Categorical)
def _kl_categorical(p: Categorical, q: Categorical) -> Tensor:
    """KL(p || q) [B] from log-probabilities: finite, with a gradient, where q underflows."""
    return (p.probs * (p.logits - q.logits)).sum(-1)


class DiagonalGaussian(Independent):
    """Real vectors [d] from [mean, log_std], [B, 2d]."""

    def __init__(self, params: Tensor) -> None:
        mean, log_std = params.chunk(2, dim=-1)
        super().__init__(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def fisher_product(self, u: Tensor) -> Tensor:
        """1 / sigma^2 on the mean, 2 on the log std, [B, 2d] -> [B, 2d]."""
        mean, log_std = u.chunk(2, dim=-1)
        return torch.cat([mean / self.base_dist.variance, 2 * log_std], dim=-1)
