"""Advantage estimators: pure functions of a rollout and its values.

Each takes time-major tensors, `reward` [T, N], `value` [T+1, N] (V(s_t), the last row for the state
after the last step), `terminated`, `truncated`, `valid` [T, N] bool, and returns advantages [T, N],
0 on invalid rows. All share one reading of an episode's end:

- terminated: the successor is worth 0, also where truncated is set too;
- truncated, or the end of the rollout: the sum is cut and the successor is worth V(s_{t+1});
- nothing crosses an episode's end.

A regression target for the baseline is always `advantage + value[:-1]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlopt import check, linalg
from rlopt.distributed import gather


def _prepare(
    reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """V(s_{t+1}) as each step may see it, and whether its episode goes on: both [T, N]."""
    T, N = reward.shape
    assert value.shape == (T + 1, N), (value.shape, reward.shape)
    assert terminated.shape == truncated.shape == valid.shape == (T, N)
    next_value = torch.where(terminated, 0.0, value[1:])
    continues = valid & ~terminated & ~truncated
    return next_value, continues


def _discounted_sum(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t y_{t+1} with y_T = 0, along the first dimension: [T, N]."""
    y = torch.zeros_like(x[0])
    rows = []
    for x_t, decay_t in zip(reversed(x.unbind()), reversed(decay.unbind()), strict=True):
        y = torch.addcmul(x_t, decay_t, y)
        rows.append(y)
    return torch.stack(rows[::-1])


def gae(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Generalised advantage estimation.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t);  A_t = delta_t + gamma lambda A_{t+1}.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", equations 11 and 16.
    """
    check.fraction(lambda_=lambda_)
    next_value, continues = _prepare(reward, value, terminated, truncated, valid)
    delta = torch.where(valid, reward + gamma * next_value - value[:-1], 0.0)
    return _discounted_sum(delta, gamma * lambda_ * continues.to(delta))


def reward_to_go(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    bootstrap: bool,
) -> Tensor:
    """The lecture's R_h(tau) - b(s_h): Monte Carlo return minus baseline.

    R_t = r_t + gamma R_{t+1}, where the return after a cut is V(s_{t+1}); or 0 without `bootstrap`:
    the time limit is then the lecture's horizon H, at which nothing more is earned.

    Source: lecture, "PG with a learned baseline".
    """
    check.flag(bootstrap=bootstrap)
    ended = terminated if bootstrap else terminated | truncated
    next_value, continues = _prepare(reward, value, ended, truncated, valid)
    cut_value = torch.where(continues, 0.0, next_value)
    # The last row of the rollout is cut too, whether its episode ended or not.
    cut_value[-1] = next_value[-1]
    returns = _discounted_sum(reward + gamma * cut_value, gamma * continues.to(reward))
    return torch.where(valid, returns - value[:-1], 0.0)


def td(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    num_steps: int,
) -> Tensor:
    """n-step temporal difference: sum_{i<n} gamma^i r_{t+i} + gamma^n V(s_{t+n}) - V(s_t).

    The sum is shorter where the episode or the rollout ends within n steps.

    Source: Sutton & Barto 2018, equation 7.1.
    """
    check.whole(num_steps=num_steps)
    next_value, continues = _prepare(reward, value, terminated, truncated, valid)
    n_step_return = reward + gamma * next_value
    for _ in range(min(num_steps, len(reward)) - 1):
        # Nothing is known beyond the last row: what follows it is worth V(s_T).
        later = torch.cat([n_step_return[1:], next_value[-1:]])
        n_step_return = reward + gamma * torch.where(continues, later, next_value)
    return torch.where(valid, n_step_return - value[:-1], 0.0)


def standardize(advantage: Tensor, valid: Tensor) -> Tensor:
    """(A - mean) / std over the valid entries of all processes, 0 where all are equal.

    std is the population's: the result has a mean square of 1. Invalid rows stay 0.
    """
    x = gather(advantage[valid])
    centred = advantage - x.mean()
    std = linalg.std(x, correction=0)
    # Rounding leaves a spread of about eps * |mean| in equal numbers; below that there is no signal
    # to scale up.
    has_spread = std > 10 * torch.finfo(x.dtype).eps * x.abs().max()
    return torch.where(valid, centred / std if has_spread else torch.zeros_like(centred), 0.0)
