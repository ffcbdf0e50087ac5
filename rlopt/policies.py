"""Policies: observation -> distribution over actions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlopt import check
from rlopt.distributions import Categorical, DiagonalGaussian
from rlopt.linalg import PASS_ROWS
from rlopt.normalize import RunningNorm

HUGE = 1e10
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


class Perceptron(nn.Sequential):
    """Layers applied to a few thousand rows at a time: half the time on large batches."""

    def forward(self, input: Tensor) -> Tensor:
        """[*, d] -> [*, k]."""
        rows = input.reshape(-1, input.shape[-1])
        if torch.compiler.is_compiling() or len(rows) <= PASS_ROWS:  # one program for any batch
            return super().forward(input)
        output = torch.cat([super(Perceptron, self).forward(x) for x in rows.split(PASS_ROWS)])
        return output.view(*input.shape[:-1], -1)


def mlp(sizes: Sequence[int], activation: str, output_gain: float) -> Perceptron:
    """A fully connected network, orthogonal weights of gain sqrt 2 (`output_gain` on the last).

    Args:
        sizes: widths from the input to the output; two of them make a linear map.
        activation: a key of `ACTIVATIONS`.
        output_gain: small for a policy, which then starts near uniform; 1 for a value.

    Source: Andrychowicz et al. 2021, "What matters for on-policy deep actor-critic methods?",
    section 3.2.
    """
    check.one_of(list(ACTIVATIONS), activation=activation)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(layer.weight, 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, ACTIVATIONS[activation]()]
    network = Perceptron(*layers[:-1])
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.orthogonal_(last.weight, output_gain)
    return network


class MLPPolicy(nn.Module):
    """A categorical or diagonal Gaussian policy on a perceptron; without hidden layers, linear.

    Gaussian: the mean is the network's output and the log std a parameter free of the state, both
    in units of half the action range around its centre where the Box is bounded, so that one
    initial std suits every environment.

    Args:
        observation_space: Box of shape [d].
        action_space: Discrete (starting at 0), or Box of any shape [d].
        hidden_sizes: widths of the hidden layers.
        activation: `tanh`, `relu`, `elu` or `silu`.
        log_std_init: initial log std of a Gaussian in the units above; without effect on Discrete.
        output_gain: orthogonal gain of the last layer.
        normalize_obs: standardise observations by running statistics.

    Raises:
        ValueError: a space or a setting that is not supported.
    """

    action_center: Tensor
    action_scale: Tensor
    log_action_scale: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        log_std_init: float,
        output_gain: float,
        normalize_obs: bool,
    ) -> None:
        super().__init__()
        check.sizes(hidden_sizes=hidden_sizes)
        check.positive(output_gain=output_gain)
        check.between(-20, 20, log_std_init=log_std_init)  # beyond, exp under- or overflows
        check.flag(normalize_obs=normalize_obs)
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(f"needs flat Box observations, got {observation_space}")
        obs_size = observation_space.shape[0]
        if isinstance(action_space, spaces.Discrete):
            self.continuous, output_size = False, int(action_space.n)
        elif isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
            self.continuous, output_size = True, action_space.shape[0]
            self._add_gaussian_parameters(action_space, log_std_init)
        else:
            raise ValueError(f"needs Discrete or flat Box actions, got {action_space}")
        self.normalizer = RunningNorm(obs_size) if normalize_obs else None
        self.network = mlp([obs_size, *hidden_sizes, output_size], activation, output_gain)

    def _add_gaussian_parameters(self, action_space: spaces.Box, log_std_init: float) -> None:
        low, high = torch.as_tensor(action_space.low), torch.as_tensor(action_space.high)
        # a bound that no action comes near is none, and an empty range has no scale
        bounded = (low.abs() < HUGE) & (high.abs() < HUGE) & (low < high)
        center = torch.where(bounded, (low + high) / 2, torch.where(low == high, low, 0.0))
        half_range = torch.where(bounded, (high - low) / 2, 1.0)
        dtype = torch.get_default_dtype()
        self.register_buffer("action_center", center.to(dtype))
        self.register_buffer("action_scale", half_range.to(dtype))
        self.register_buffer("log_action_scale", half_range.log().to(dtype))
        self.log_std = nn.Parameter(torch.full(action_space.shape, float(log_std_init)))

    def dist_params(self, obs: Tensor) -> Tensor:
        """Observations [B, d] to logits [B, n], or [mean, log_std] [B, 2d] in action units."""
        output = self.network(obs if self.normalizer is None else self.normalizer(obs))
        if not self.continuous:
            return output
        mean = torch.addcmul(self.action_center, self.action_scale, output)
        log_std = (self.log_std + self.log_action_scale).expand_as(mean)
        return torch.cat([mean, log_std], dim=-1)

    def dist(self, params: Tensor) -> Categorical | DiagonalGaussian:
        """Parameters [B, k] to the distribution."""
        return DiagonalGaussian(params) if self.continuous else Categorical(params)

    def forward(self, obs: Tensor) -> Categorical | DiagonalGaussian:
        """Observations [B, d] to the distribution over actions."""
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs: Tensor) -> None:
        """Take observations [B, d] into the normaliser; moves the policy: after updates only."""
        if self.normalizer is not None:
            self.normalizer.update(obs)
