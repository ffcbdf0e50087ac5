"""Checks of the rollout and the batch, against what the environment returned call by call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlopt.action_spaces import children, leaves
from rlopt.linalg import flatten
from rlopt.rollout import EpisodeRollout
from rlopt.rows import Row, at_most, not_applicable
from rlopt.types import Batch, RecurrentPolicy
from rlopt.verify.audit import ROUNDING, Audit, relative
from rlopt.verify.chance import excess_of
from rlopt.verify.watch import EnvLog

UNKNOWN_SAMPLER = "a sampler of another kind"
NUM_DRAWS = 300  # of a subsample


def rollout_rows(audit: Audit) -> list[Row]:
    """The rollout is what the environment was told and returned, step by step.

    A step after an episode's end only resets: it is no transition. An environment gets the sampled
    action, counted from its space's start, within the bounds of a Box.
    """
    env, rollout = audit.watch.env, audit.rollout
    if env is None:
        return [not_applicable(UNKNOWN_SAMPLER)]
    T = len(rollout.action)
    replay = env.replay()
    returned = [stacked(env, T, i) for i in (0, 2, 3, 4, 5)]
    before, after, reward, terminated, truncated = returned
    width = before.shape[-1]
    obs = rollout.obs.cpu().numpy()[..., :width].astype(float)
    is_transition, number = (np.stack([row[i] for row in replay[-T:]]) for i in (0, 1))
    reward, done = reward.reshape(is_transition.shape), np.logical_or(terminated, truncated)
    sampler = audit.trainer.rollout
    quota = sampler.episodes if isinstance(sampler, EpisodeRollout) else None
    valid = is_transition & within_quota(done, quota)
    differ = [
        (rollout.terminated.cpu().numpy() != terminated) & valid,
        (rollout.truncated.cpu().numpy() != truncated) & valid,
        rollout.valid.cpu().numpy() != valid,
        rollout.step[:-1].cpu().numpy() != number,
    ]
    wrong_obs = [np.abs(obs[:-1] - before)[valid].max(), np.abs(obs[1:] - after)[valid].max()]
    returns = returns_of(env, done, valid)
    wrong_return = np.abs(np.subtract(returns, sorted(rollout.episode_returns)))
    return [
        at_most("observations: largest error", max(wrong_obs), 0.0),
        at_most("rewards: largest error",
                np.abs(rollout.reward.cpu().numpy() - np.where(valid, reward, 0)).max(), ROUNDING),
        at_most("ends, rows, step numbers that differ", np.sum(differ), 0.0),
        at_most("actions as they arrived: largest error", wrong_actions(env, list(rollout.action)),
                1e-5),
        at_most("returns of its episodes: largest error", wrong_return.max(initial=0),
                1e-9 * max(1, np.abs(returns).max(initial=0))),
        at_most("seeds of its resets that repeat", len(env.seeds) - len(set(env.seeds)), 0.0),
    ]  # fmt: skip


def stacked(env: EnvLog, T: int, item: int) -> NDArray:
    """One item of each of the last T steps, [T, N, *]."""
    return np.stack([np.asarray(step[item]) for step in env.steps[-T:]])


def within_quota(done: NDArray, episodes: int | None) -> NDArray:
    """Which rows [T, N] belong to episodes that were asked for, divided evenly beforehand."""
    if episodes is None:
        return np.ones_like(done)
    N = done.shape[1]
    quota = episodes // N + (np.arange(N) < episodes % N)
    ended_before = np.cumsum(done, axis=0) - done
    return ended_before < quota


def returns_of(env: EnvLog, done: NDArray, counts: NDArray) -> list[float]:
    """Returns of the episodes that end where `done` and `counts` [T, N], by the last T steps."""
    totals = [row[2] for row in env.replay()[-len(done) :]]
    pairs = zip(totals, done & counts, strict=True)
    return sorted(float(total[i]) for total, ends in pairs for i in np.flatnonzero(ends))


def wrong_actions(env: EnvLog, chosen: Sequence[Tensor]) -> float:
    """The largest difference of the actions [N, *] of the last steps from what arrived."""
    space, worst = env.env.single_action_space, 0.0
    low, high = bounds(space)
    for action, step in zip(chosen, env.steps[-len(chosen) :], strict=True):
        rows = action.cpu().numpy().reshape(len(action), -1).astype(float)
        due = np.clip(rows, low, high)
        worst = max(worst, float(np.abs(columns(space, step[1]) - due).max()))
    return worst


def bounds(space: spaces.Space) -> tuple[NDArray, NDArray]:
    """Of each entry of an action; none where it is no Box."""
    low: list[float] = []
    high: list[float] = []
    for leaf in leaves(space):
        if isinstance(leaf, spaces.Box):
            low += leaf.low.reshape(-1).tolist()
            high += leaf.high.reshape(-1).tolist()
        else:
            size = math.prod(leaf.shape or ())
            low += [-np.inf] * size
            high += [np.inf] * size
    return np.array(low), np.array(high)


def columns(space: spaces.Space, action: Any) -> NDArray:
    """The entries [N, a] of actions as an environment takes them, counted from 0."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([columns(space[key], action[key]) for key in space], axis=1)
    if isinstance(space, spaces.Tuple):
        both = zip(children(space), action, strict=True)
        return np.concatenate([columns(*pair) for pair in both], axis=1)
    counted = isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
    x = np.asarray(action, float) - (space.start if counted else 0)  # type: ignore[attr-defined]
    return x.reshape(len(x), -1)


def batch_rows(audit: Audit) -> list[Row]:
    """The batch is the rollout's transitions, one environment after the other, and its horizon.

    Means are over steps, or sums over a trajectory's steps as `average_over` says.
    """
    rollout, batch = audit.rollout, audit.full_batch
    T, N = rollout.valid.shape
    rows = [(t, n) for n in range(N) for t in range(T) if rollout.valid[t, n]]
    starts = [t == 0 or not rollout.valid[t - 1, n] for t, n in rows]
    first = torch.tensor(starts, device=batch.obs.device)
    obs = torch.stack([rollout.obs[t, n] for t, n in rows])
    action = torch.stack([rollout.action[t, n] for t, n in rows])
    wrong = first.new_zeros(())
    if isinstance(audit.policy, RecurrentPolicy):
        obs = torch.cat([obs, first[:, None].to(obs)], dim=1)
        wrong = first.sum() if batch.starts is None else (batch.starts != first).sum()
    per_trajectory = audit.trainer.settings.average_over == "trajectories"
    horizon = len(rows) / sum(starts) if per_trajectory else 1.0
    x = torch.linspace(-1, 2, len(rows), dtype=batch.advantage.dtype, device=first.device)
    return [
        at_most("entries of its observations that differ", (batch.obs != obs).sum(), 0.0),
        at_most("entries of its actions that differ", (batch.action != action).sum(), 0.0),
        at_most("beginnings of sequences that differ", wrong, 0.0),
        at_most("|horizon - expected|", abs(batch.horizon - horizon), ROUNDING),
        at_most("|E[x] - horizon times the mean of x|",
                abs(batch.expect(x) - horizon * x.mean()), ROUNDING),
    ]  # fmt: skip


def parts_of_a_batch(audit: Audit) -> list[Row]:
    """What divides a batch: each transition is in one part, and random parts are random.

    Sequences stay whole. A subsample of half of the units has each with probability 1/2, at a level
    of 1e-9.
    """
    batch = audit.full_batch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrong = wrong_divisions(batch)
        draws = chosen(batch)
    units = draws.shape[1]
    rows = [at_most("transitions left out, twice or apart", wrong, 0.0)]
    if units < 8:
        return [*rows, not_applicable(f"random or not: {units} units can't tell")]
    share = draws.mean()
    terms = draws - share
    return [
        *rows,
        at_most("subsample of half: |share - 1/2|", abs(share - 0.5), 1 / units),
        at_most("units in subsamples: over their bound", excess_of(terms), 1.0),
        at_most("gradient of E[x], relative error", wrong_gradient(audit), ROUNDING),
    ]


def numbered(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with each transition's number for its advantage, and the units' numbers [B]."""
    number = torch.arange(len(batch), device=batch.obs.device)
    unit = number if batch.starts is None else batch.starts.cumsum(0) - 1
    small = batch.obs[:, :0]
    tagged = Batch(small, batch.action, number, batch.horizon, batch.chunk_size, batch.starts)
    return tagged, unit


def wrong_divisions(batch: Batch) -> int:
    """Transitions that a division loses, doubles, or parts from their sequence."""
    tagged, unit = numbered(batch)
    size = max(1, len(batch) // 5)
    minibatches = [tagged[index] for index in tagged.minibatches(size)]
    orders = [torch.cat([tagged[i].advantage for i in tagged.minibatches(size)]) for _ in "12"]
    half, other = tagged.halves()
    every = tagged.every(3)
    wrong = sum(apart(parts, unit) for parts in (minibatches, [half, other], tagged.chunks()))
    if batch.starts is None:
        wrong += max(map(len, minibatches)) - size > 0
        wrong += max(map(len, minibatches)) - min(map(len, minibatches)) > 1
        wrong += abs(len(half) - len(other)) > 1
    if len(unit.unique()) > 8:
        wrong += bool(torch.equal(*orders))
    wrong += bool((every.advantage != numbers_of(unit, unit % 3 == 0)).any())
    return int(wrong)


def numbers_of(unit: Tensor, keep: Tensor) -> Tensor:
    """The numbers of the transitions that are kept."""
    return torch.arange(len(unit), device=unit.device)[keep]


def apart(parts: list[Batch], unit: Tensor) -> int:
    """Transitions of numbered parts that are missing, twice, or not beside their sequence."""
    numbers = torch.cat([part.advantage for part in parts])
    count = torch.bincount(numbers, minlength=len(unit))
    sizes = torch.bincount(unit)
    shares = [torch.bincount(unit[part.advantage], minlength=len(sizes)) for part in parts]
    torn = sum(int(((own != 0) & (own != sizes)).sum()) for own in shares)
    disordered = sum(int((part.advantage.diff()[~begins(part)] != 1).sum()) for part in parts)
    return int((count != 1).sum()) + torn + disordered


def begins(part: Batch) -> Tensor:
    """Of each transition but the first, whether it begins a unit."""
    if part.starts is None:
        return torch.ones(max(0, len(part) - 1), dtype=torch.bool, device=part.obs.device)
    return part.starts[1:]


def chosen(batch: Batch) -> Tensor:
    """Which units are in each of many subsamples of half of the batch, [draws, units]."""
    tagged, unit = numbered(batch)
    result = batch.obs.new_zeros(NUM_DRAWS, int(unit.max()) + 1, dtype=torch.float64)
    for row in result:
        row[unit[tagged.subsample(len(batch) // 2).advantage]] = 1.0
    return result


def wrong_gradient(audit: Audit) -> float:
    """Relative error of `Batch.gradient` of the entropy-free surrogate, by autograd at once."""
    batch, policy = audit.batch, audit.policy

    def surrogate(part: Batch) -> Tensor:
        return policy(part.obs).log_prob(part.action) * part.advantage

    g = flatten(torch.autograd.grad(audit.mean(surrogate(batch)), audit.parameters))
    return relative(batch.gradient(surrogate, audit.parameters), g)
