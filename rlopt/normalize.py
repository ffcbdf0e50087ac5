"""Running mean and variance as `nn.Module`s, so that a checkpoint carries them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlopt.distributed import gather

MAX_FEATURES = 1024  # whose doubles are in memory at a time: images have tens of thousands
# std of a constant column over its |mean|, at most: a few units of rounding in float32; in float64
# what a simulator's constants gather of them (6e-13 was measured in 24,000 steps of Humanoid-v5)
ROUNDING = {torch.float32: 5e-7, torch.float64: 2e-12}


def _statistics(x: Tensor) -> Tensor:
    """Count, mean and variance of each column of x [B, size], in float64: [3, size]."""
    x = x.double()
    return torch.stack([torch.full_like(x[0], len(x)), x.mean(0), x.var(0, unbiased=False)])


class RunningNorm(nn.Module):
    """Standardise by the mean and variance of everything seen by `update`.

    Before the first update it is the identity. The output is clipped to [-10, 10].

    The mean of float64 numbers is subtracted in float64: float32 cannot tell 1.7e9 from 1.7e9 + 1.
    A column is constant where its std is within the rounding of its numbers, of whatever size.

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
        # what a forward pass subtracts and divides by, made of mean and var
        self.register_buffer("shift", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of any type [*, size] -> [*, size] in torch's default float type."""
        shift, scale = self.shift, self.scale
        if x.dtype != torch.float64:
            shift = shift.to(scale.dtype)
        return ((x - shift).to(scale.dtype) / scale).clamp(-10, 10)

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
        self._prepare(ROUNDING.get(x.dtype, ROUNDING[torch.float64]))

    def _merge(self, n: Tensor, mean: Tensor, var: Tensor) -> None:
        total = self.count + n
        delta = mean - self.mean
        squares = var * n + delta**2 * self.count * n / total
        self.var.copy_((self.var * self.count + squares) / total)
        self.mean.add_(delta * n / total)
        self.count.copy_(total)

    def _prepare(self, rounding: float) -> None:
        """Set `shift` and `scale` from mean and variance.

        A constant column maps to 0, a number far from the constant to 10 or -10. Where rounding the
        mean is harmless it is rounded, so that the same numbers give the same bits in every type.
        """
        std, size = self.var.sqrt(), self.mean.abs()
        limits = torch.finfo(self.scale.dtype)
        varies = (std > rounding * size) & (std > limits.tiny)
        std = torch.where(varies, std, 1e-6 * size.clamp(min=1)).clamp(max=limits.max)
        rounded = self.mean.to(self.scale.dtype).to(self.mean.dtype)
        harmless = (rounded - self.mean).abs() <= 1e-3 * std
        self.shift.copy_(torch.where(harmless, rounded, self.mean))
        self.scale.copy_(std)


class ImageNorm(nn.Module):
    """Scale pixels to 0..1 by the bounds of their Box, and standardise the other columns.

    Running means of pixels would be tens of thousands of numbers that nothing needs.

    Args:
        low: what is subtracted from each column, [size]: 0 for other columns than pixels.
        scale: what it is then multiplied by, [size]: 1 for other columns than pixels.
        vectors: which columns are no pixels, [n].
        standardize: whether these are standardised by running statistics.
    """

    count: Tensor
    low: Tensor
    scale: Tensor
    vectors: Tensor

    def __init__(self, low: Tensor, scale: Tensor, vectors: Tensor, standardize: bool) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("vectors", vectors, persistent=False)
        self.starts_at_0 = not bool(low.any())
        self.running = RunningNorm(len(vectors)) if standardize and len(vectors) else None

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of any type [*, size] -> [*, size] in torch's default float type."""
        pixels = x.to(self.scale.dtype)
        if not self.starts_at_0:
            pixels = pixels - self.low
        pixels = pixels * self.scale
        if self.running is None:
            return pixels
        return pixels.index_copy(-1, self.vectors, self.running(x[..., self.vectors]))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the statistics of the batches [B, size] of all processes into the running ones."""
        self.count += len(x)
        if self.running is not None:
            self.running.update(x[..., self.vectors])
