"""What the statements share: their result, its figures, and one step of an update rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from rlopt.algos.pg import PG
from rlopt.rows import Row
from rlopt.tabular import parameters_of
from rlopt.types import Batch

UNDAMPED: dict[str, Any] = {
    "fisher": "exact",
    "fisher_samples": None,
    "solver": "cg",
    "damping": 0.0,
    "cg_iterations": 50,
    "cg_tolerance": 1e-12,  # F is singular: below it CG chases g's rounding outside F's range
}


@dataclass(frozen=True)
class Result:
    """The rows of a statement, and what its figure shows."""

    rows: list[Row]
    data: dict[str, Any] = field(default_factory=dict)


def gap(x: Tensor, truth: Tensor) -> float:
    """The largest difference, relative to the largest entry of the truth."""
    return float((x - truth).abs().max() / truth.abs().max())


def order(size: Tensor, error: Tensor) -> float:
    """The slope of ln error over ln size."""
    return float(np.polyfit(size.log().numpy(), error.log().numpy(), 1)[0])


def random_steps(sizes: Tensor, num_parameters: int, seed: int) -> Tensor:
    """Steps of each size in the same 20 random directions: [n, 20, P].

    One direction is not enough: it may be one in which the leading term happens to be small.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, num_parameters, generator=generator, dtype=sizes.dtype)
    return sizes[:, None, None] * directions / directions.norm(dim=-1, keepdim=True)


def largest(error: Tensor) -> Tensor:
    """The largest error [n] of each size over the directions, from [n, 20]."""
    return error.abs().amax(-1)


def random_pi(num_states: int, num_actions: int, seed: int) -> Tensor:
    """A random policy table [S, A]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.dirichlet(np.ones(num_actions), num_states))


def step(rule: Callable[..., Any], policy: nn.Module, batch: Batch, **settings: Any) -> Tensor:
    """By how much one step of an update rule moves a copy of the policy: [P]."""
    moved = copy.deepcopy(policy)
    rule(moved, **settings).step(batch)
    return parameters_of(moved) - parameters_of(policy)


def estimated_gradient(policy: nn.Module, batch: Batch) -> Tensor:
    """The gradient [P] that rlopt.algos.pg follows: its step at learning rate 1."""
    return step(PG, policy, batch, optimizer=partial(SGD, lr=1.0))
