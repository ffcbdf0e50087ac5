"""A policy with a memory: a GRU over the observations of an episode.

A row of a rollout is [observation, state before it]; a row of a batch has a third part, 1 where a
sequence begins. The state of such a row is a constant, 0 at an episode's start and otherwise what
acting had left when the rollout began. From there `dist_params` runs over whole sequences, all at
once, and gradients go back to their beginnings: to the rules it is a function of the parameters
like any other, so that J^T M J and the line search need nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import linear

from rlopt import check
from rlopt.action_spaces import make_head
from rlopt.distributions import MASKED
from rlopt.linalg import PASS_ROWS
from rlopt.masks import mask_size
from rlopt.networks import floats, in_passes, mlp
from rlopt.normalize import RunningNorm
from rlopt.types import RecurrentPolicy


class GRUPolicy(nn.Module):
    """A GRU, a perceptron on its state, and the head of the action space.

    An action mask at the end of the observation goes past normaliser and GRU to the logits.

    Args:
        observation_space: Box of shape [d].
        action_space: Discrete, MultiDiscrete, MultiBinary, Box, or Tuple or Dict of them.
        state_size: H, numbers that are remembered.
        update_bias: initial bias of the gate z in h' = (1 - z) n + z h: at 2 half of a state is
            left after five steps, at 0 after one.
        hidden_sizes: widths of the layers between the state and the output.
        activation: of these layers, `tanh`, `relu`, `elu` or `silu`.
        distribution: of Box actions, a key of `action_spaces.BOX_HEADS`.
        log_std_init: initial log std of a Gaussian, in units of half the action range.
        output_gain: gain of the last layer.
        orthogonal_init: orthogonal initial weights, of the GRU gate by gate, in place of torch's.
        normalize_obs: standardise observations by running statistics.

    Raises:
        ValueError: a space or a setting that is not supported.

    Source: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder";
    Jozefowicz et al. 2015, "An empirical exploration of recurrent network architectures", section
    2.2, for the bias.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        state_size: int,
        update_bias: float,
        hidden_sizes: Sequence[int],
        activation: str,
        distribution: str,
        log_std_init: float,
        output_gain: float,
        orthogonal_init: bool,
        normalize_obs: bool,
    ) -> None:
        super().__init__()
        check.whole(state_size=state_size)
        check.between(-20, 20, update_bias=update_bias)
        check.sizes(hidden_sizes=hidden_sizes)
        check.positive(output_gain=output_gain)
        check.flag(orthogonal_init=orthogonal_init, normalize_obs=normalize_obs)
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(f"needs flat Box observations, got {observation_space}")
        self.state_size = state_size
        self.mask_size = mask_size(observation_space)
        self.obs_size = observation_space.shape[0] - self.mask_size
        self.head = make_head(action_space, distribution, log_std_init)
        self.normalizer = RunningNorm(self.obs_size) if normalize_obs else None
        self.takes_float64 = normalize_obs
        self.cell = nn.GRUCell(self.obs_size, state_size)
        if orthogonal_init:
            for name, x in self.cell.named_parameters():
                for gate in x.data.chunk(3):
                    nn.init.zeros_(gate) if "bias" in name else nn.init.orthogonal_(gate)
        self.cell.bias_ih.data.chunk(3)[1].fill_(update_bias)  # torch's order is r, z, n
        sizes = [state_size, *hidden_sizes, self.head.num_outputs]
        self.network = mlp(sizes, activation, output_gain, orthogonal_init)

    def dist_params(self, obs: Tensor) -> Tensor:
        """Rows of sequences [B, d + H + 1] to the parameters of the distribution [B, k]."""
        if not len(obs):  # as one of several processes may have none: still a function of theta
            return self.dist_params(obs.new_ones(1, obs.shape[-1]))[:0]
        features, mask, state, first = self._split(obs, self.state_size, 1)
        order, sizes = packing(first.squeeze(-1) > 0)
        states = run(self.cell, features[order], state[order[: sizes[0]]], sizes)
        return self._params(states[order.argsort()], mask)

    def advance(self, obs: Tensor, state: Tensor) -> tuple[Distribution, Tensor]:
        """One step: observations [N, d] and states [N, H] to distribution and next states."""
        features, mask = self._split(obs)
        state = self.cell(features, state)
        return self.dist(self._params(state, mask)), state

    def _split(self, rows: Tensor, *sizes: int) -> tuple[Tensor, ...]:
        """Standardised features, the mask, and what is behind it, in floats of one type."""
        features, *rest = rows.split([self.obs_size, self.mask_size, *sizes], dim=-1)
        features = floats(features) if self.normalizer is None else self.normalizer(features)
        return features, *(x.to(features.dtype) for x in rest)

    def _params(self, state: Tensor, mask: Tensor) -> Tensor:
        params = self.head(in_passes(self.network, state, PASS_ROWS))
        return params.masked_fill(mask == 0, MASKED) if self.mask_size else params

    def dist(self, params: Tensor) -> Distribution:
        """Parameters [B, k] to the distribution."""
        return self.head.dist(params)

    def forward(self, obs: Tensor) -> Distribution:
        """Rows of sequences [B, d + H + 1] to the distribution over actions."""
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs: Tensor) -> None:
        """Take rows [B, d + H + 1] into the normaliser; moves the policy: after updates only."""
        if self.normalizer is not None:
            self.normalizer.update(obs[:, : self.obs_size])


def run(cell: nn.GRUCell, x: Tensor, state: Tensor, sizes: list[int]) -> Tensor:
    """The state after each row of packed sequences, [B, H].

    torch's own loop can't be differentiated twice by cuDNN, and elsewhere fills a tensor of all
    rows for each step in its backward pass.

    Args:
        cell: the recurrence.
        x: [B, d], packed.
        state: [S, H], of each sequence before its first row.
        sizes: how many sequences have a t-th row.
    """
    H, states = cell.hidden_size, []
    gates = linear(x, cell.weight_ih, cell.bias_ih).split([2 * H, H], dim=-1)
    for rz, n in zip(*(gate.split(sizes) for gate in gates), strict=True):
        h = state[: len(n)]
        h_rz, h_n = linear(h, cell.weight_hh, cell.bias_hh).split([2 * H, H], dim=-1)
        r, z = (rz + h_rz).sigmoid().chunk(2, dim=-1)
        state = torch.lerp(torch.addcmul(n, r, h_n).tanh(), h, z)  # (1 - z) n + z h
        states.append(state)
    return torch.cat(states)


def packing(first: Tensor) -> tuple[Tensor, list[int]]:
    """An order of all first rows, all second ones ..., those of long sequences first.

    Args:
        first: [B] bool, where each sequence begins, the first row among them.

    Returns:
        The rows in that order [B], and how many sequences have a t-th row.
    """
    assert first[0]
    starts, sequence = first.nonzero()[:, 0], first.cumsum(0) - 1
    t = torch.arange(len(first), device=first.device) - starts[sequence]
    rank = sequence.bincount().argsort(descending=True, stable=True).argsort()
    return (t * len(starts) + rank[sequence]).argsort(), t.bincount().tolist()


def rollout_space(policy: object, observation_space: spaces.Space) -> spaces.Space:
    """Of the observations in a rollout: the environment's, a recurrent policy's state behind it."""
    if not isinstance(policy, RecurrentPolicy):
        return observation_space
    assert observation_space.shape is not None
    return spaces.Box(-np.inf, np.inf, (observation_space.shape[0] + policy.state_size,))
