"""Policies: observation -> distribution over actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from rlopt import check
from rlopt.action_spaces import make_head
from rlopt.distributions import MASKED
from rlopt.masks import mask_size, unmasked
from rlopt.networks import (
    IMAGE_ROWS,
    FourierFeatures,
    cnn,
    find_images,
    floats,
    in_passes,
    mlp,
    pass_rows,
)
from rlopt.normalize import RunningNorm
from rlopt.observations import described, entries, make_normalizer


class NetworkPolicy(nn.Module):
    """A normaliser, any network, and the head of the action space.

    An action mask at the end of the observation goes past the normaliser and the network to the
    logits of the actions that it forbids.

    Args:
        observation_space: Box of shape [d].
        action_space: Discrete, MultiDiscrete, MultiBinary, Box, or Tuple or Dict of them.
        network: makes the network from the observation space, without the mask, and the number of
            outputs k: an `nn.Module` from rows [B, d] to [B, k].
        images: numbers of the observation's entries that the network takes as images. Their pixels
            are scaled to 0..1; all else is standardised, if `normalize_obs`.
        distribution: of Box actions, a key of `action_spaces.BOX_HEADS`.
        log_std_init: initial log std of a Gaussian, in units of half the action range.
        normalize_obs: standardise observations by running statistics.

    Raises:
        ValueError: a space or a setting that is not supported.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        network: Callable[[spaces.Space, int], nn.Module],
        images: Sequence[int],
        *,
        distribution: str,
        log_std_init: float,
        normalize_obs: bool,
    ) -> None:
        super().__init__()
        check.flag(normalize_obs=normalize_obs)
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(f"needs flat Box observations, got {observation_space}")
        self.mask_size = mask_size(observation_space)
        space = unmasked(observation_space)
        self.entries = entries(space)
        self.pass_rows = IMAGE_ROWS if images else pass_rows(spaces.flatdim(space))
        self.head = make_head(action_space, distribution, log_std_init)
        self.normalizer = make_normalizer(self.entries, images, normalize_obs)
        self.takes_float64 = any(isinstance(x, RunningNorm) for x in self.modules())
        self.network = network(space, self.head.num_outputs)
        self._refuse_misfit(spaces.flatdim(space))

    @torch.no_grad()
    def _refuse_misfit(self, size: int) -> None:
        """See to it that a network, which may be the user's own, gives what the head takes."""
        if not isinstance(self.network, nn.Module):
            kind = type(self.network).__name__
            raise ValueError(f"network must be an nn.Module, got an object of {kind}")
        output, due = self.network(self._input(torch.zeros(1, size))), (1, self.head.num_outputs)
        if output.shape != due:
            found = list(output.shape)
            raise ValueError(f"network must map [1, {size}] to {list(due)}, got {found}")

    def dist_params(self, obs: Tensor) -> Tensor:
        """Observations [B, d] to the parameters of the distribution [B, k]."""
        features, mask = self._split(obs)
        output = in_passes(lambda x: self.network(self._input(x)), features, self.pass_rows)
        params = self.head(output)
        return params if mask is None else params.masked_fill(mask == 0, MASKED)

    def dist(self, params: Tensor) -> Distribution:
        """Parameters [B, k] to the distribution."""
        return self.head.dist(params)

    def forward(self, obs: Tensor) -> Distribution:
        """Observations [B, d] to the distribution over actions."""
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs: Tensor) -> None:
        """Take observations [B, d] into the normaliser; moves the policy: after updates only."""
        if self.normalizer is not None:
            self.normalizer.update(self._split(obs)[0])

    @property
    def num_features(self) -> int:
        """Of `features`.

        Raises:
            ValueError: the network has no last layer that is linear.
        """
        layers = list(self.network.children())
        if not isinstance(self.network, nn.Sequential) or not isinstance(layers[-1], nn.Linear):
            kind = type(self.network).__name__
            raise ValueError(
                "baseline=trunk needs a policy.network that is an nn.Sequential and ends in an "
                f"nn.Linear, got {kind}"
            )
        return layers[-1].in_features

    def features(self, obs: Tensor) -> Tensor:
        """Observations [.., d] to what goes into the network's last layer [.., num_features]."""

        def trunk(x: Tensor) -> Tensor:
            x = self._input(x)
            for layer in list(self.network.children())[:-1]:
                x = layer(x)
            return x

        return in_passes(trunk, self._split(obs)[0], self.pass_rows)

    def _split(self, obs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Observations without their masks, and these."""
        if not self.mask_size:
            return obs, None
        features, mask = obs.tensor_split([-self.mask_size], dim=-1)
        return features, mask

    def _input(self, x: Tensor) -> Tensor:
        """The network's input, in floats."""
        return floats(x) if self.normalizer is None else self.normalizer(x)


class MLPPolicy(NetworkPolicy):
    """A perceptron; without hidden layers, linear.

    Args:
        observation_space: as of `NetworkPolicy`.
        action_space: as of `NetworkPolicy`.
        hidden_sizes: widths of the hidden layers.
        activation: `tanh`, `relu`, `elu` or `silu`.
        output_gain: gain of the last layer.
        orthogonal_init: orthogonal initial weights in place of `nn.Linear`'s.
        settings: `distribution`, `log_std_init` and `normalize_obs` of `NetworkPolicy`.
    """

    network: nn.Sequential

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        output_gain: float,
        orthogonal_init: bool,
        **settings: Any,
    ) -> None:
        check.sizes(hidden_sizes=hidden_sizes)
        check.positive(output_gain=output_gain)
        check.flag(orthogonal_init=orthogonal_init)

        def network(space: spaces.Space, num_outputs: int) -> nn.Module:
            sizes = [spaces.flatdim(space), *hidden_sizes, num_outputs]
            return mlp(sizes, activation, output_gain, orthogonal_init)

        super().__init__(observation_space, action_space, network, [], **settings)


class FourierPolicy(NetworkPolicy):
    """Linear in random Fourier features, of which it learns nothing but the linear map.

    Args:
        observation_space: as of `NetworkPolicy`.
        action_space: as of `NetworkPolicy`.
        num_features: how many features.
        bandwidth: the scale of their input, in units of sqrt(2 d).
        output_gain: gain of the linear map, at first orthogonal.
        settings: `distribution`, `log_std_init` and `normalize_obs` of `NetworkPolicy`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        num_features: int,
        bandwidth: float,
        output_gain: float,
        **settings: Any,
    ) -> None:
        check.positive(output_gain=output_gain)

        def network(space: spaces.Space, num_outputs: int) -> nn.Module:
            features = FourierFeatures(spaces.flatdim(space), num_features, bandwidth)
            linear = mlp([num_features, num_outputs], "tanh", output_gain, orthogonal_init=True)
            return nn.Sequential(features, *linear)

        super().__init__(observation_space, action_space, network, [], **settings)


class CNNPolicy(NetworkPolicy):
    """Convolutions for each image of the observation, then a perceptron.

    Which entries are images `find_images` decides; `seen` says it in words.

    Args:
        observation_space: as of `NetworkPolicy`, with an image among its entries.
        action_space: as of `NetworkPolicy`.
        convolutions: `nature` (Mnih et al. 2015) or `impala` (Espeholt et al. 2018).
        channels: of each convolution or block, or None for the paper's.
        vector_sizes: widths of a perceptron for the entries that are no images.
        hidden_sizes: widths of the hidden layers behind them all.
        activation: `tanh`, `relu`, `elu` or `silu`.
        output_gain: gain of the last layer.
        orthogonal_init: orthogonal initial weights in place of torch's.
        settings: `distribution`, `log_std_init` and `normalize_obs` of `NetworkPolicy`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        convolutions: str,
        channels: Sequence[int] | None,
        vector_sizes: Sequence[int],
        hidden_sizes: Sequence[int],
        activation: str,
        output_gain: float,
        orthogonal_init: bool,
        **settings: Any,
    ) -> None:
        check.sizes(hidden_sizes=hidden_sizes)
        check.positive(output_gain=output_gain)
        check.flag(orthogonal_init=orthogonal_init)
        space = unmasked(observation_space)
        images = find_images(entries(space), convolutions, channels)

        def network(space: spaces.Space, num_outputs: int) -> nn.Module:
            return cnn(
                entries(space),
                num_outputs,
                convolutions=convolutions,
                channels=channels,
                vector_sizes=vector_sizes,
                hidden_sizes=hidden_sizes,
                activation=activation,
                output_gain=output_gain,
                orthogonal_init=orthogonal_init,
            )

        super().__init__(observation_space, action_space, network, images, **settings)
        self.seen = described(space, images)


class CustomPolicy(NetworkPolicy):
    """A network of the user's own.

    Args:
        observation_space: as of `NetworkPolicy`.
        action_space: as of `NetworkPolicy`.
        network: as of `NetworkPolicy`: a class, its keywords bound.
        settings: `distribution`, `log_std_init` and `normalize_obs` of `NetworkPolicy`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        network: Callable[[spaces.Space, int], nn.Module],
        **settings: Any,
    ) -> None:
        super().__init__(observation_space, action_space, network, [], **settings)
