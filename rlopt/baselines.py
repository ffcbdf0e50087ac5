"""Baselines: b(s) or the lecture's b(s, h), fitted to returns by regression.

Each standardises its own inputs and targets, so neither the reward's scale nor the observation's
matters, and fits no parameter of the policy, so that its fit can't move the policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlopt import check, linalg
from rlopt.distributed import gather, total, total_count, total_mean
from rlopt.least_squares import NetworkBaseline, inputs, mean_std
from rlopt.linalg import PASS_ROWS
from rlopt.masks import unmasked
from rlopt.networks import IMAGE_ROWS, cnn, find_images, mlp, pass_rows
from rlopt.normalize import RunningNorm
from rlopt.observations import described, entries, make_normalizer

MOST_FEATURES = 10_000  # of ridge regression, whose matrix has the square of it
STEP = spaces.Box(-np.inf, np.inf, (1,))  # an entry of the input where it is seen


class ZeroBaseline(nn.Module):
    """b = 0: the advantage is the return itself."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__()

    def forward(self, obs: Tensor, step: Tensor) -> Tensor:
        """Zeros [..]."""
        return torch.zeros_like(step, dtype=torch.get_default_dtype())

    def fit(self, obs: Tensor, step: Tensor, target: Tensor) -> dict[str, float]:
        """Nothing to fit."""
        return {}


class LinearBaseline(nn.Module):
    """Ridge regression on features of the observation and the step.

    Features: x, x^2 and 1, with x the standardised observation, and t, t^2, t^3 of the standardised
    step.

    Args:
        observation_space: Box of shape [d].
        ridge: lambda of lambda ||w||^2, on standardised targets and the mean over samples.
        sees_step: the step of the episode is a feature.

    Source: Duan et al. 2016, "Benchmarking deep reinforcement learning for continuous control",
    section 5.2.
    """

    weight: Tensor
    takes_float64 = True  # the normaliser subtracts the mean

    def __init__(self, observation_space: spaces.Space, *, ridge: float, sees_step: bool) -> None:
        super().__init__()
        check.positive(ridge=ridge)
        check.flag(sees_step=sees_step)
        assert observation_space.shape is not None
        size = observation_space.shape[0] + sees_step
        num_features = 2 * size + sees_step + 1
        if num_features > MOST_FEATURES:
            raise ValueError(
                f"baseline=linear solves for all features at once, {num_features} are too many: "
                "use baseline=mlp or baseline=cnn"
            )
        self.ridge = ridge
        self.sees_step = sees_step
        self.normalizer = RunningNorm(size)
        self.register_buffer("weight", torch.zeros(num_features, dtype=torch.float64))

    def _features(self, obs: Tensor, step: Tensor) -> Tensor:
        x = self.normalizer(inputs(obs, step, self.sees_step)).double()
        cube = [x[..., -1:] ** 3] if self.sees_step else []
        return torch.cat([x, x**2, *cube, torch.ones_like(x[..., :1])], dim=-1)

    def forward(self, obs: Tensor, step: Tensor) -> Tensor:
        """Values [..]."""
        return (self._features(obs, step) @ self.weight).to(torch.get_default_dtype())

    @torch.no_grad()
    def fit(self, obs: Tensor, step: Tensor, target: Tensor) -> dict[str, float]:
        """Solve (Phi^T Phi / B + ridge I) w = Phi^T y / B, in float64 on standardised targets."""
        self.normalizer.update(inputs(obs, step, self.sees_step))
        phi, y = self._features(obs, step), target.double()
        mean, std = mean_std(y)
        count = total_count(len(y))
        eye = torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
        gram = total(phi.T @ phi) / count + self.ridge * eye
        moment = total(phi.T @ ((y - mean) / std)) / count
        solution, info = torch.linalg.solve_ex(gram, moment)
        if info > 0:  # singular to rounding: features that depend on each other, a tiny ridge
            solution = torch.linalg.pinv(gram, hermitian=True) @ moment
        self.weight.copy_(solution * std)
        self.weight[-1] += mean
        return {"baseline/loss": float(total_mean(((phi @ self.weight - y) / std).square()))}


class MLPBaseline(NetworkBaseline):
    """A multilayer perceptron of the observation.

    Args:
        observation_space: Box of shape [d].
        hidden_sizes: widths of the hidden layers.
        activation: `tanh`, `relu`, `elu` or `silu`.
        orthogonal_init: orthogonal initial weights in place of `nn.Linear`'s.
        sees_step: the step of the episode is an input, as in the lecture's b(s, h).
        settings: the others of `NetworkBaseline`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        orthogonal_init: bool,
        sees_step: bool,
        **settings: Any,
    ) -> None:
        check.sizes(hidden_sizes=hidden_sizes)
        check.flag(orthogonal_init=orthogonal_init, sees_step=sees_step)
        size = spaces.flatdim(observation_space) + sees_step
        network = mlp([size, *hidden_sizes, 1], activation, 1.0, orthogonal_init)
        rows = pass_rows(size)
        super().__init__(RunningNorm(size), network, rows, sees_step=sees_step, **settings)


class CNNBaseline(NetworkBaseline):
    """Convolutions for each image of the observation, then a perceptron.

    Args:
        observation_space: flat, with an image among its entries.
        convolutions: `nature` or `impala`, as of the policy.
        channels: of each convolution or block, or None for the paper's.
        vector_sizes: widths of a perceptron for the entries that are no images.
        hidden_sizes: widths of the hidden layers behind them all.
        activation: `tanh`, `relu`, `elu` or `silu`.
        orthogonal_init: orthogonal initial weights in place of torch's.
        sees_step: the step of the episode is an input, as in the lecture's b(s, h).
        settings: the others of `NetworkBaseline`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        convolutions: str,
        channels: Sequence[int] | None,
        vector_sizes: Sequence[int],
        hidden_sizes: Sequence[int],
        activation: str,
        orthogonal_init: bool,
        sees_step: bool,
        **settings: Any,
    ) -> None:
        check.sizes(hidden_sizes=hidden_sizes)
        check.flag(orthogonal_init=orthogonal_init, sees_step=sees_step)
        parts = [*entries(observation_space), *[STEP] * sees_step]
        images = find_images(parts, convolutions, channels)
        normalizer = make_normalizer(parts, images, standardize=True)
        assert normalizer is not None
        network = cnn(
            parts,
            1,
            convolutions=convolutions,
            channels=channels,
            vector_sizes=vector_sizes,
            hidden_sizes=hidden_sizes,
            activation=activation,
            output_gain=1.0,
            orthogonal_init=orthogonal_init,
        )
        super().__init__(normalizer, network, IMAGE_ROWS, sees_step=sees_step, **settings)
        self.seen = described(unmasked(observation_space), images)


class TrunkBaseline(NetworkBaseline):
    """A shared trunk: a perceptron of the features that the policy's last layer sees.

    The features are taken as they are, without a gradient: the policy's update alone moves the
    trunk, and a fit leaves the policy bitwise as it was. So second-order updates stay those of the
    policy alone. A fit sees features that the last update has moved.

    Args:
        observation_space: Box of shape [d].
        policy: with `features` and `num_features`, as `NetworkPolicy` has them.
        hidden_sizes: widths of the hidden layers; none: linear in the features.
        activation: `tanh`, `relu`, `elu` or `silu`.
        orthogonal_init: orthogonal initial weights in place of `nn.Linear`'s.
        sees_step: the step of the episode is an input beside the features.
        settings: the others of `NetworkBaseline`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        *,
        policy: Any,
        hidden_sizes: Sequence[int],
        activation: str,
        orthogonal_init: bool,
        sees_step: bool,
        **settings: Any,
    ) -> None:
        check.sizes(hidden_sizes=hidden_sizes)
        check.flag(orthogonal_init=orthogonal_init, sees_step=sees_step)
        if not callable(getattr(policy, "features", None)):
            kind = type(policy).__name__
            raise ValueError(f"baseline=trunk needs a policy with features, {kind} has none")
        size = policy.num_features + sees_step
        network = mlp([size, *hidden_sizes, 1], activation, 1.0, orthogonal_init)
        normalizer = RunningNorm(size)
        super().__init__(normalizer, network, PASS_ROWS, sees_step=sees_step, **settings)
        self.trunk = policy.features  # a method: the policy is no part of this module

    @torch.no_grad()
    def _inputs(self, obs: Tensor, step: Tensor) -> Tensor:
        return inputs(self.trunk(obs), step, self.sees_step)


def explained_variance(value: Tensor, target: Tensor) -> float:
    """1 - Var(target - value) / Var(target): 1 is perfect; nan for constant targets.

    The variances are those over all processes.
    """
    value, target = gather(value), gather(target)
    scale = linalg.power_of_two(target)
    value, target = value / scale, target / scale
    variance = target.var(unbiased=False)
    residual = (target - value).var(unbiased=False)
    return float(1 - residual / variance) if variance > 0 else math.nan
