"""The exact mean, variance and range of the lecture's gradient estimate, and a bound from them.

Where returns have heavy tails, Student's quantiles are too small for the error of a mean.
Bernstein's inequality holds for any distribution whose variance and range are known, and on a
tabular MDP both follow from one backward recursion.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlopt.tabular import TabularMDP


class Moments(NamedTuple):
    """Of K numbers X that are computed from one trajectory, each [K]; |X| <= bound."""

    mean: Tensor
    variance: Tensor
    bound: Tensor


def estimate_moments(mdp: TabularMDP, pi: Tensor, phi: Tensor, b: Tensor) -> Moments:
    """The moments of X = sum_h phi(s_h, a_h) (R_h(tau) - b_h(s_h)) for tau ~ rho_pi.

    Args:
        mdp: of S states, A actions, H steps.
        pi: the policy that samples, [S, A].
        phi: [S, A, K]. The scores grad ln pi(a | s) make X the estimate of the policy gradient.
        b: any baseline, [H, S].
    """
    S, _, K = phi.shape
    ends = mdp.terminal[:, None]
    returns = torch.zeros(S, 2, dtype=phi.dtype)  # E[R], E[R^2] from each state on
    X = torch.zeros(S, 3, K, dtype=phi.dtype)  # E[X], E[X^2], E[X R]
    for b_h in reversed(b.unbind()):
        # R = r + R' and X = phi (R - b) + X', where ' is what follows the successor.
        R_next, X_next = mdp.P @ returns, torch.einsum("sat,tik->saik", mdp.P, X)
        r = mdp.R[..., None]
        R1, R2 = r + R_next[..., :1], r**2 + 2 * r * R_next[..., :1] + R_next[..., 1:]
        X1, X2, XR = X_next.unbind(2)
        XR = r * X1 + XR  # E[X' R]
        b_s = b_h[:, None, None]
        given_action = torch.stack([
            phi * (R1 - b_s) + X1,
            phi**2 * (R2 - 2 * b_s * R1 + b_s**2) + 2 * phi * (XR - b_s * X1) + X2,
            phi * (R2 - b_s * R1) + XR,
        ], 2)  # fmt: skip
        X = torch.einsum("sa,saik->sik", pi, given_action).masked_fill(ends[..., None], 0.0)
        returns = torch.einsum("sa,sai->si", pi, torch.cat([R1, R2], -1)).masked_fill(ends, 0.0)
    mean, square, _ = torch.einsum("s,sik->ik", mdp.mu, X).unbind()
    return Moments(mean, (square - mean**2).clamp(min=0), _largest(mdp, phi, b))


def _largest(mdp: TabularMDP, phi: Tensor, b: Tensor) -> Tensor:
    """A bound [K] of |X|: the worst path if each step met the return furthest from its baseline."""
    S, _, K = phi.shape
    unreachable = mdp.P == 0
    low = high = torch.zeros(S, dtype=phi.dtype)  # the smallest and largest return from each state
    X = torch.zeros(S, K, dtype=phi.dtype)
    for b_h in reversed(b.unbind()):
        low_sa = mdp.R + low.expand_as(mdp.P).masked_fill(unreachable, math.inf).amin(-1)
        high_sa = mdp.R + high.expand_as(mdp.P).masked_fill(unreachable, -math.inf).amax(-1)
        furthest = torch.maximum((low_sa - b_h[:, None]).abs(), (high_sa - b_h[:, None]).abs())
        X_next = X.expand(*mdp.P.shape, K).masked_fill(unreachable[..., None], 0.0).amax(2)
        X = (phi.abs() * furthest[..., None] + X_next).amax(1)
        X = X.masked_fill(mdp.terminal[:, None], 0.0)
        low = low_sa.amin(1).masked_fill(mdp.terminal, 0.0)
        high = high_sa.amax(1).masked_fill(mdp.terminal, 0.0)
    return X[mdp.mu > 0].amax(0)


def bernstein(moments: Moments, count: int, level: float) -> Tensor:
    """The limit [K] of |average of `count` trajectories - mean|, at a level for each number.

    Any distribution exceeds it with at most that probability.

    Source: Bernstein's inequality, P(|average - mean| >= t) <= 2 exp(-n t^2 / 2 (var + M t / 3))
    with |X - mean| <= M; Boucheron, Lugosi & Massart 2013, "Concentration inequalities",
    corollary 2.11.
    """
    log = math.log(2 / level)
    linear = (moments.bound + moments.mean.abs()) * log / 3
    return (linear + (linear**2 + 2 * count * moments.variance * log).sqrt()) / count
