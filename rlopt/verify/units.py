"""Checks of the units in which a policy's outputs are actions of a Box."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.spaces import Box
from torch import Tensor

from rlopt.action_spaces import (
    HUGE,
    BetaHead,
    BoxHead,
    FullGaussianHead,
    ProductHead,
    SquashedGaussianHead,
    StateStdGaussianHead,
    leaves,
)
from rlopt.box import FullGaussian
from rlopt.policies import NetworkPolicy
from rlopt.recurrent import GRUPolicy
from rlopt.rows import Row, at_most, not_applicable
from rlopt.verify.audit import Audit


def units_of_the_action(audit: Audit) -> list[Row]:
    """In a Box: an output of 0 is its centre, a log std is in units of half its range.

    Squashed and beta actions are within its bounds.
    """
    if not isinstance(audit.policy, NetworkPolicy | GRUPolicy):
        return [not_applicable("a policy of another kind")]
    head = audit.policy.head
    heads = head.heads if isinstance(head, ProductHead) else [head]
    env = audit.watch.env
    boxes = [head for head in heads if isinstance(head, BoxHead)]
    if env is None or not boxes:
        return [not_applicable("no action is a Box")]
    leaves_of = [leaf for leaf in leaves(env.env.single_action_space) if isinstance(leaf, Box)]
    return [row for pair in zip(boxes, leaves_of, strict=True) for row in unit_rows(*pair)]


@torch.no_grad()
def unit_rows(head: Any, space: Box) -> list[Row]:
    """Rows for one Box and its head."""
    low, high = (torch.as_tensor(x).reshape(-1).to(head.center) for x in (space.low, space.high))
    bounded = torch.isfinite(low) & torch.isfinite(high) & (high - low < HUGE)
    centre = torch.where(bounded, (low + high) / 2, 0.0)
    half = torch.where(bounded, (high - low) / 2, 1.0)
    dist = head.dist(head(head.center.new_zeros(1, head.num_outputs)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = 5 * torch.randn(200, head.num_outputs).to(head.center)
        far = head.dist(head(outputs)).sample()
    rows = [at_most("centre of the Box: error", ((dist.mode - centre) / half).abs().max(), 1e-5)]
    if isinstance(head, SquashedGaussianHead | BetaHead):
        beyond = ((far < low - 1e-5 * half) | (far > high + 1e-5 * half)).sum()
        used = (far.amax(0) - far.amin(0)) / (2 * half)
        return [
            *rows,
            at_most("actions beyond its bounds", beyond, 0.0),
            at_most("share of its range that is not used", (1 - used).clamp(min=0).max(), 0.5),
        ]
    std = dist.L.diagonal(dim1=1, dim2=2) if isinstance(dist, FullGaussian) else dist.stddev
    error = (std / half / log_std_of(head).exp() - 1).abs().max()
    return [*rows, at_most("std / half its range: error, relative", error, 1e-5)]


def log_std_of(head: Any) -> Tensor:
    """The log std [d] of a Gaussian head whose output is 0."""
    if isinstance(head, StateStdGaussianHead):
        return head.center.new_full([head.size], head.log_std_init)
    return head.factor[: head.size] if isinstance(head, FullGaussianHead) else head.log_std
