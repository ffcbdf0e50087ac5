"""Action spaces: from a network's output to a distribution, and from its action to a Gymnasium one.

A head maps the output of a network [B, m] to the parameters [B, k] of a distribution and these to
the distribution. Its action is a flat tensor: [B] for Discrete, else [B, a] with a column for each
entry, leaf after leaf of a Tuple or Dict; `env_action` makes of it what an environment takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution

from rlopt import check
from rlopt.box import Beta, FullGaussian, SquashedGaussian
from rlopt.distributions import Bernoulli, Categorical, DiagonalGaussian, Product

HUGE = 1e10
LEAVES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)


def children(space: spaces.Space) -> list[spaces.Space]:
    """The spaces that a Tuple or Dict is made of."""
    assert isinstance(space, spaces.Tuple | spaces.Dict)
    return list(space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces)


def leaves(space: spaces.Space) -> Iterator[spaces.Space]:
    """A space, or those that a Tuple or Dict is made of, nested ones too.

    Raises:
        ValueError: a space of another kind.
    """
    if isinstance(space, spaces.Tuple | spaces.Dict):
        for child in children(space):
            yield from leaves(child)
    elif isinstance(space, LEAVES):
        yield space
    else:
        kinds = "Discrete, MultiDiscrete, MultiBinary, Box and Tuple or Dict of them are"
        raise ValueError(f"{space} is not supported; {kinds}")


def num_columns(space: spaces.Space) -> int:
    """Entries of a flat action."""
    return sum(math.prod(leaf.shape or ()) for leaf in leaves(space))


def env_action(space: spaces.Space, action: NDArray) -> Any:
    """Flat actions [N] or [N, a] as `VectorEnv.step` takes them; those of a Box within its bounds.

    Discrete entries count from the space's start.
    """
    if isinstance(space, spaces.Tuple | spaces.Dict):
        ends = list(accumulate(map(num_columns, children(space))))
        columns = np.split(action, ends[:-1], axis=1)
        parts = tuple(env_action(*part) for part in zip(children(space), columns, strict=True))
        return dict(zip(space, parts, strict=True)) if isinstance(space, spaces.Dict) else parts
    action = action.reshape(len(action), *(space.shape or ()))
    if isinstance(space, spaces.Box):
        clipped = np.minimum(np.maximum(action, space.low), space.high)
        return clipped.astype(space.dtype, copy=False)
    if isinstance(space, spaces.Discrete) and action.dtype == space.dtype:
        return action + space.start if space.start else action
    start = space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else 0
    return (action + start).astype(space.dtype)


class LogitsHead(nn.Module):
    """The output itself are logits.

    Args:
        size: of the output, m = k.
        family: their distribution.
    """

    def __init__(self, size: int, family: Callable[[Tensor], Distribution]) -> None:
        super().__init__()
        self.num_outputs = self.num_params = size
        self.dist = family

    def forward(self, output: Tensor) -> Tensor:
        """[B, m] to [B, k]."""
        return output


class BoxHead(nn.Module):
    """What the heads of a Box have in common: their unit.

    It is half the action range around its centre where the Box is bounded, so that one initial std
    suits every environment; elsewhere 1, around 0 or the nearest number that is 1 inside the bound.

    Args:
        space: Box with d entries.
        log_std_init: initial log std in these units.
    """

    center: Tensor
    scale: Tensor
    log_scale: Tensor

    def __init__(self, space: spaces.Box, log_std_init: float) -> None:
        super().__init__()
        low, high = (torch.as_tensor(x).reshape(-1) for x in (space.low, space.high))
        # a bound that no action comes near is none, and an empty range has no scale
        has_low, has_high = low.abs() < HUGE, high.abs() < HUGE
        self.bounded = has_low & has_high & (low < high)
        center = torch.zeros_like(low)  # with one bound, at least one unit inside it
        center = torch.where(has_low, center.maximum(low + 1), center)
        center = torch.where(has_high, center.minimum(high - 1), center)
        center = torch.where(low == high, low, center)
        center = torch.where(self.bounded, (low + high) / 2, center)
        half_range = torch.where(self.bounded, (high - low) / 2, 1.0)
        dtype = torch.get_default_dtype()
        self.register_buffer("center", center.to(dtype))
        self.register_buffer("scale", half_range.to(dtype))
        self.register_buffer("log_scale", half_range.log().to(dtype))
        self.size = len(low)
        self.num_outputs, self.num_params = self.size, 2 * self.size
        self._add_spread(float(log_std_init))

    def _add_spread(self, log_std_init: float) -> None:
        """A log std free of the state."""
        self.log_std = nn.Parameter(torch.full([self.size], log_std_init))


class GaussianHead(BoxHead):
    """A diagonal Gaussian: the output is the mean, the log std a parameter free of the state."""

    def forward(self, output: Tensor) -> Tensor:
        """[B, d] to [mean, log_std] [B, 2d] in action units."""
        mean = torch.addcmul(self.center, self.scale, output)
        log_std = (self.log_std + self.log_scale).expand_as(mean)
        return torch.cat([mean, log_std], dim=-1)

    def dist(self, params: Tensor) -> Distribution:
        """The distribution of actions [B, d]."""
        return DiagonalGaussian(params)


class StateStdGaussianHead(GaussianHead):
    """A diagonal Gaussian: the output is the mean and what is added to the initial log std."""

    def _add_spread(self, log_std_init: float) -> None:
        self.num_outputs = 2 * self.size
        self.log_std_init = log_std_init

    def forward(self, output: Tensor) -> Tensor:
        """[B, 2d] to [mean, log_std] [B, 2d] in action units."""
        mean, log_std = output.chunk(2, dim=-1)
        mean = torch.addcmul(self.center, self.scale, mean)
        return torch.cat([mean, log_std + (self.log_std_init + self.log_scale)], dim=-1)


class FullGaussianHead(BoxHead):
    """The output is the mean, a factor of the covariance a parameter free of the state.

    That `factor` holds the log diagonal, at first `log_std_init`, and what is below it, at first 0.
    """

    def _add_spread(self, log_std_init: float) -> None:
        below = self.size * (self.size - 1) // 2
        self.num_params = 2 * self.size + below
        spread = [torch.full([self.size], log_std_init), torch.zeros(below)]
        self.factor = nn.Parameter(torch.cat(spread))
        self.rows = torch.tril_indices(self.size, self.size, -1)[0]

    def forward(self, output: Tensor) -> Tensor:
        """[B, d] to the parameters of a FullGaussian [B, k] in action units."""
        mean = torch.addcmul(self.center, self.scale, output)
        diagonal = self.factor[: self.size] + self.log_scale
        below = self.factor[self.size :] * self.scale[self.rows]
        factor = torch.cat([diagonal, below]).expand(*mean.shape[:-1], -1)
        return torch.cat([mean, factor], dim=-1)

    def dist(self, params: Tensor) -> Distribution:
        """The distribution of actions [B, d]."""
        return FullGaussian(params, self.size)


class SquashedGaussianHead(BoxHead):
    """The diagonal Gaussian before a tanh that ends at the bounds; its unit is tanh's."""

    def forward(self, output: Tensor) -> Tensor:
        """[B, d] to [mean, log_std] [B, 2d] before the tanh."""
        return torch.cat([output, self.log_std.expand_as(output)], dim=-1)

    def dist(self, params: Tensor) -> Distribution:
        """The distribution of actions [B, d]."""
        return SquashedGaussian(params, self.center, self.scale)


class BetaHead(BoxHead):
    """alpha and beta are 1 + softplus of the output, so that the density has one peak."""

    def _add_spread(self, log_std_init: float) -> None:
        self.num_outputs = 2 * self.size

    def forward(self, output: Tensor) -> Tensor:
        """[B, 2d] to [alpha, beta] [B, 2d]."""
        return 1 + nn.functional.softplus(output)

    def dist(self, params: Tensor) -> Distribution:
        """The distribution of actions [B, d]."""
        return Beta(params, self.center - self.scale, self.center + self.scale)


BOX_HEADS: dict[str, type[BoxHead]] = {
    "gaussian": GaussianHead,
    "gaussian_state_std": StateStdGaussianHead,
    "full_gaussian": FullGaussianHead,
    "squashed_gaussian": SquashedGaussianHead,
    "beta": BetaHead,
}
NEEDS_BOUNDS = ("squashed_gaussian", "beta")


class ProductHead(nn.Module):
    """Heads side by side, each on its own slice of the output: independent parts of an action."""

    def __init__(self, heads: list[Any]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.output_sizes = [head.num_outputs for head in heads]
        self.param_sizes = [head.num_params for head in heads]
        self.num_outputs, self.num_params = sum(self.output_sizes), sum(self.param_sizes)

    def forward(self, output: Tensor) -> Tensor:
        """[B, m] to [B, k]."""
        slices = zip(self.heads, output.split(self.output_sizes, dim=-1), strict=True)
        return torch.cat([head(x) for head, x in slices], dim=-1)

    def dist(self, params: Tensor) -> Distribution:
        """The distribution of actions [B, a]."""
        slices = zip(self.heads, params.split(self.param_sizes, dim=-1), strict=True)
        return Product([head.dist(x) for head, x in slices], self.param_sizes)  # type: ignore[operator]


def make_head(space: spaces.Space, distribution: str, log_std_init: float) -> Any:
    """The head of an action space.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, Box, or Tuple or Dict of them.
        distribution: of Box actions, a key of `BOX_HEADS`.
        log_std_init: initial log std of a Gaussian, in units of half the action range.

    Raises:
        ValueError: a space that is not supported or can't have that distribution.
    """
    check.one_of(list(BOX_HEADS), distribution=distribution)
    check.between(-20, 20, log_std_init=log_std_init)  # beyond, exp under- or overflows
    boxes = [leaf for leaf in leaves(space) if isinstance(leaf, spaces.Box)]
    if not boxes and distribution != "gaussian":
        raise ValueError(
            "distribution must be gaussian where no action is a Box, "
            f"got {distribution!r} for {space}"
        )

    def box(leaf: spaces.Box) -> nn.Module:
        head = BOX_HEADS[distribution](leaf, log_std_init)
        if distribution in NEEDS_BOUNDS and not head.bounded.all():
            others = ", ".join(name for name in BOX_HEADS if name not in NEEDS_BOUNDS)
            raise ValueError(
                f"distribution must be one of {others} where a Box has no bounds, "
                f"got {distribution!r} for {leaf}"
            )
        return head

    heads: list[Any] = []
    for leaf in leaves(space):
        if isinstance(leaf, spaces.Box):
            heads.append(box(leaf))
        elif isinstance(leaf, spaces.MultiBinary):
            heads.append(LogitsHead(math.prod(leaf.shape), Bernoulli))
        else:
            heads += [LogitsHead(n, Categorical) for n in categories(leaf)]
    single = isinstance(space, spaces.Discrete | spaces.Box | spaces.MultiBinary)
    return heads[0] if single else ProductHead(heads)


def categories(space: spaces.Space) -> list[int]:
    """How many choices each entry of a Discrete or MultiDiscrete has; none for other spaces."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return space.nvec.reshape(-1).tolist() if isinstance(space, spaces.MultiDiscrete) else []
