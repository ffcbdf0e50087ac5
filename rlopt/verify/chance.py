"""How far a sum of random terms of mean 0 may be from 0 at a stated level."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVEL = 1e-9  # the chance that a row of random figures fails where nothing is wrong


def excess(total: Tensor, squares: Tensor, largest: Tensor, tests: int | None = None) -> Tensor:
    """The largest |sum| over its bound: above 1 with probability `LEVEL` at the most.

    Bernstein's inequality, which holds for the sums of a martingale too (Freedman 1975): no action
    needs to be independent of the states before it.

    Args:
        total: sums, of any shape.
        squares: sums of the terms' variances, of the same shape. Measured ones miss what is rare.
        largest: the largest |term| of each.
        tests: how many figures a row judges together; None: those of `total`.
    """
    L = math.log(2 * (tests or total.numel()) / LEVEL)
    linear = largest * L / 3
    bound = linear + (linear.square() + 2 * squares * L).sqrt()
    return torch.where(total == 0, 0.0, total.abs() / bound).max()


def excess_of(
    terms: Tensor,
    tests: int | None = None,
    variance: Tensor | float = 0.0,
    largest: float = 0.0,
) -> Tensor:
    """The same of terms [N, ..] of mean 0, summed over the first dimension.

    Variance of the sum and largest term are measured, and at least those that are given.
    """
    squares = terms.square().sum(0)
    squares = torch.maximum(squares, torch.as_tensor(variance).to(squares).expand_as(squares))
    return excess(terms.sum(0), squares, terms.abs().amax(0).clamp(min=largest), tests)
