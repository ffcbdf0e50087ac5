"""Running mean and variance as `nn.Module`s, so that a checkpoint carries them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlopt.distributed import gather

MAX_FEATURES = 1024  # whose doubles are in memory at a time: images have tens of thousands


def _statistics(x: Tensor) -> Tensor:
    """Count, mean and variance of each column of x [B, size], in float64: [3, size]."""
    x = x.double()
    return torch.stack([torch.full_like(x[0], len(x)), x.mean(0), x.var(0, unbiased=False)])


class RunningNorm(nn.Module):
    """Standardise by the mean and variance of everything seen by `update`.

    Before the first update it is the identity. The output is clipped to [-10, 10].

    Args:
        size: number of features, the last dimension.
    """

    count: Tensor
    mean: Tensor
    var: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        # mean and std in the precision of the data, for a forward pass of few operations
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[*, size] -> [*, size]."""
        return ((x - self.shift) / self.scale).clamp(-10, 10)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the statistics of the batches [B, size] of all processes into the running ones.

        Source: Chan, Golub & LeVeque 1979, the pairwise update of mean and sum of squares.
        """
        if len(x) == 0:
            return
        parts = x.split(MAX_FEATURES, dim=-1)
        statistics = torch.cat([_statistics(part) for part in parts], dim=-1)
        for count, mean, var in gather(statistics[None]):
            self._merge(count[0], mean, var)

    def _merge(self, n: Tensor, mean: Tensor, var: Tensor) -> None:
        total = self.count + n
        delta = mean - self.mean
        squares = var * n + delta**2 * self.count * n / total
        self.var.copy_((self.var * self.count + squares) / total)
        self.mean.add_(delta * n / total)
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_(self.var.sqrt().clamp(min=1e-6))  # a constant feature maps to 0, not 0/0


class ImageNorm(nn.Module):
    """Standardise the columns that are no pixels, and scale those that are; takes uint8 as well.

    Running means of pixels would be tens of thousands of numbers to no use.

    Args:
        scale: what a column is multiplied by, [size]: 1 / 255 for a pixel of a whole number.
        vectors: which columns are no pixels, [n].
        standardize: these by running statistics.
    """

    count: Tensor
    scale: Tensor
    vectors: Tensor

    def __init__(self, scale: Tensor, vectors: Tensor, standardize: bool) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("vectors", vectors, persistent=False)
        self.running = RunningNorm(len(vectors)) if standardize and len(vectors) else None

    def forward(self, x: Tensor) -> Tensor:
        """[*, size] -> [*, size], in floats."""
        x = x * self.scale
        if self.running is None:
            return x
        return x.index_copy(-1, self.vectors, self.running(x[..., self.vectors]))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the statistics of the batches [B, size] of all processes into the running ones."""
        self.count += len(x)
        if self.running is not None:
            self.running.update(x[..., self.vectors])
