"""Policies: observation -> distribution over actions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from rlopt import check
from rlopt.action_spaces import make_head
from rlopt.distributions import MASKED
from rlopt.linalg import PASS_ROWS
from rlopt.masks import mask_size
from rlopt.normalize import RunningNorm
from rlopt.types import as_float

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


def mlp(
    sizes: Sequence[int], activation: str, output_gain: float, orthogonal_init: bool
) -> Perceptron:
    """A fully connected network; biases start at 0.

    Args:
        sizes: widths from the input to the output; two of them make a linear map.
        activation: a key of `ACTIVATIONS`.
        output_gain: small for a policy, which then starts near uniform; 1 for a value.
        orthogonal_init: orthogonal weights of gain sqrt 2, of `output_gain` in the last layer; else
            those that `nn.Linear` draws, uniform on +- 1 / sqrt(width), times `output_gain` there.

    Source: Andrychowicz et al. 2021, "What matters for on-policy deep actor-critic methods?",
    section 3.2.
    """
    check.one_of(list(ACTIVATIONS), activation=activation)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out)
        if orthogonal_init:
            nn.init.orthogonal_(layer.weight, 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, ACTIVATIONS[activation]()]
    network = Perceptron(*layers[:-1])
    last = network[-1]
    assert isinstance(last, nn.Linear)
    if orthogonal_init:
        nn.init.orthogonal_(last.weight, output_gain)
    else:
        last.weight.data.mul_(output_gain)
    return network


class MLPPolicy(nn.Module):
    """A perceptron and the head of the action space; without hidden layers, linear.

    An action mask at the end of the observation goes past the normaliser and the network to the
    logits of the actions that it forbids.

    Args:
        observation_space: Box of shape [d].
        action_space: Discrete, MultiDiscrete, MultiBinary, Box, or Tuple or Dict of them.
        hidden_sizes: widths of the hidden layers.
        activation: `tanh`, `relu`, `elu` or `silu`.
        distribution: of Box actions, a key of `action_spaces.BOX_HEADS`.
        log_std_init: initial log std of a Gaussian, in units of half the action range.
        output_gain: gain of the last layer.
        orthogonal_init: orthogonal initial weights in place of `nn.Linear`'s.
        normalize_obs: standardise observations by running statistics.

    Raises:
        ValueError: a space or a setting that is not supported.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        distribution: str,
        log_std_init: float,
        output_gain: float,
        orthogonal_init: bool,
        normalize_obs: bool,
    ) -> None:
        super().__init__()
        check.sizes(hidden_sizes=hidden_sizes)
        check.positive(output_gain=output_gain)
        check.flag(orthogonal_init=orthogonal_init, normalize_obs=normalize_obs)
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(f"needs flat Box observations, got {observation_space}")
        self.mask_size = mask_size(observation_space)
        obs_size = observation_space.shape[0] - self.mask_size
        self.head = make_head(action_space, distribution, log_std_init)
        self.normalizer = RunningNorm(obs_size) if normalize_obs else None
        sizes = [obs_size, *hidden_sizes, self.head.num_outputs]
        self.network = mlp(sizes, activation, output_gain, orthogonal_init)

    def dist_params(self, obs: Tensor) -> Tensor:
        """Observations [B, d] to the parameters of the distribution [B, k]."""
        if self.mask_size:
            obs, mask = obs.tensor_split([-self.mask_size], dim=-1)
        x = as_float(obs) if self.normalizer is None else self.normalizer(obs)
        params = self.head(self.network(x))
        return params.masked_fill(mask == 0, MASKED) if self.mask_size else params

    def dist(self, params: Tensor) -> Distribution:
        """Parameters [B, k] to the distribution."""
        return self.head.dist(params)

    def forward(self, obs: Tensor) -> Distribution:
        """Observations [B, d] to the distribution over actions."""
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs: Tensor) -> None:
        """Take observations [B, d] into the normaliser; moves the policy: after updates only."""
        if self.normalizer is not None:
            self.normalizer.update(obs[..., : obs.shape[-1] - self.mask_size])
