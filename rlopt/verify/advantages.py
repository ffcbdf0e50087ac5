"""Advantages from their definitions: each step's n-step returns, summed one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MAX_STARTS = 300


def n_step_returns(args: list[Any], t: int, gamma: float, bootstrap: bool) -> list[float]:
    """G_1, G_2, ... of step t of one environment, up to its episode's or the rollout's end.

    G_n = sum_{i<n} gamma^i r_{t+i} + gamma^n V(s_{t+n}), V = 0 where the episode terminated, or
    without `bootstrap` where it was truncated.
    """
    reward, value, terminated, truncated, _ = args
    returns, total = [], 0.0
    for u in range(t, len(reward)):
        n = u - t + 1
        total += gamma ** (n - 1) * reward[u]
        worthless = terminated[u] or (truncated[u] and not bootstrap)
        returns.append(total + (0.0 if worthless else gamma**n * value[u + 1]))
        if terminated[u] or truncated[u]:
            break
    return returns


def weigh(name: str, settings: Mapping[str, Any], returns: list[float]) -> float:
    """The return that the estimator of that name makes of n-step returns.

    Source: Schulman et al. 2016, equation 16: GAE is their lambda-weighted mean, the last one
    taking the weight of all that would follow.
    """
    if name == "td":
        return returns[min(settings["num_steps"], len(returns)) - 1]
    if name == "reward_to_go":
        return returns[-1]
    lambda_ = settings["lambda_"]
    weighted = sum((1 - lambda_) * lambda_**i * g for i, g in enumerate(returns[:-1]))
    return weighted + lambda_ ** (len(returns) - 1) * returns[-1]


def brute_advantage(
    name: str, settings: Mapping[str, Any], args: tuple[Tensor, ...]
) -> dict[tuple[int, int], float] | None:
    """The advantage of valid steps (t, n), at most some hundred evenly spread; None if unknown."""
    if name not in ("gae", "td", "reward_to_go"):
        return None
    columns = [[x[:, n].tolist() for x in args] for n in range(args[0].shape[1])]
    starts = [(t, n) for n, column in enumerate(columns) for t, ok in enumerate(column[4]) if ok]
    every = -(-len(starts) // MAX_STARTS)
    result = {}
    for t, n in starts[::every]:
        bootstrap = settings.get("bootstrap", True)
        returns = n_step_returns(columns[n], t, settings["gamma"], bootstrap)
        result[t, n] = weigh(name, settings, returns) - columns[n][1][t]
    return result


def stitched(like: Tensor) -> tuple[Tensor, ...]:
    """Two episodes in each of three environments, the second far more valuable.

    The first ends at step 4: terminated, truncated, or both at once; an autoreset row follows.
    Returns reward, value, terminated, truncated, valid.
    """
    generator = torch.Generator().manual_seed(4)
    reward, value = (torch.randn(T, 3, generator=generator).to(like) for T in (12, 13))
    terminated = torch.zeros(12, 3, dtype=torch.bool, device=like.device)
    truncated, valid = terminated.clone(), ~terminated
    terminated[4, [0, 2]] = True
    truncated[4, [1, 2]] = True
    valid[5] = False
    reward[5] = 0.0
    value[6:] += 1e3
    return reward, value, terminated, truncated, valid
