"""Compare another implementation of an environment with Gymnasium's.

`paired` puts Gymnasium's environment into the state that the other's observation shows, before
every step, and plays the same action in both. `resets` compares where episodes begin. `episodes`
compares whole episodes where no state can be set (Box2D). backend_table.py has `table`, which
compares transitions with the table of a toy environment.

Sizes: ALPHA is the chance that an implementation that agrees fails a test, per environment; POWER
that one that is off by SEEN fails. SEEN is
- in `resets`, of each column: 0.02 of the probability on one side of some threshold;
- in `table`, of each state and action: 0.02 of the probability of a successor;
- in `episodes`: 2% of the mean return;
- in `paired`, where a difference is seen whatever its size: a kind of step that 2% of the steps are
  would be missed with a probability of 0.98^steps, which is 0 to any digit.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from backend_states import set_state
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from scipy import stats

from rlopt import envpool_env

SEEN, ALPHA, POWER = 0.02, 1e-3, 0.9
# Of pairs, relative to 1 + |x|: observations have 32 bits, MuJoCo's solver iterates to a tolerance.
TOLERANCE = 1e-4
CORRELATION = 0.05  # between two columns of a reset; its noise is 0.006 at the size that is used
Figures = dict[str, Any]


def make_other(env_id: str, backend: str, num_envs: int, **options: Any) -> VectorEnv:
    """The implementation that is compared with Gymnasium's."""
    if backend == "envpool":
        return envpool_env.make(gym.spec(env_id), num_envs, options)
    return gym.make_vec(env_id, num_envs, vectorization_mode=backend, **options)


# The same state and action in both


def paired(env_id: str, backend: str, steps: int, seed: int, **options: Any) -> Figures:
    """Largest differences over `steps` steps of each way to play.

    Random actions, one action for the whole episode, and random ones that are held for up to 60
    steps, which reach a mountain's top, or in classic control for up to 12, which swing an Acrobot
    to its end.
    """
    other, single = make_other(env_id, backend, 1, **options), gym.make(env_id, **options)
    worst = {"obs_error": 0.0, "reward_error": 0.0, "return_error": 0.0}
    counts = {"steps": 0, "episodes": 0, "terminated": 0, "truncated": 0, "other_ends": 0}
    single.action_space.seed(seed)
    classic = str(gym.spec(env_id).entry_point).startswith("gymnasium.envs.classic_control")
    for longest in (1, 10**9, 60, *([12] if classic else [])):
        obs = other.reset(seed=seed)[0][0]
        stop = counts["steps"] + steps
        while counts["steps"] < stop:
            errors, ends = _episode(other, single, obs, longest, stop - counts["steps"])
            worst = {key: max(worst[key], errors[key]) for key in worst}
            counts = {key: counts[key] + ends[key] for key in counts}
            obs = other.reset()[0][0]
    other.close()
    single.close()
    agrees = counts["other_ends"] == 0 and max(worst.values()) <= TOLERANCE
    return {**worst, **counts, "agrees": agrees}


def _episode(
    other: VectorEnv, single: gym.Env, obs: NDArray, longest: int, most: int
) -> tuple[Figures, dict[str, int]]:
    """Largest differences and counts of one episode; actions are held for up to `longest` steps."""
    single.reset()
    set_state(single.unwrapped, obs, fresh=True)
    errors = {"obs_error": 0.0, "reward_error": 0.0}
    rewards: list[tuple[float, float]] = []
    theirs_ended, ours_ended, hold = [False, False], [False, False], 0
    while not any(theirs_ended + ours_ended) and len(rewards) < most:
        if hold == 0:
            action = single.action_space.sample()
            hold = int(single.np_random.integers(1, longest + 1))
        hold -= 1
        theirs = [part[0] for part in other.step(np.asarray(action)[None])[:4]]
        ours = single.step(action)[:4]
        errors["obs_error"] = max(errors["obs_error"], relative(theirs[0], ours[0]))
        errors["reward_error"] = max(errors["reward_error"], relative(theirs[1], ours[1]))
        rewards.append((float(theirs[1]), float(ours[1])))
        theirs_ended, ours_ended = ([bool(x) for x in part[2:]] for part in (theirs, ours))
        set_state(single.unwrapped, theirs[0], fresh=False)
    counts = {
        "steps": len(rewards),
        "episodes": int(any(theirs_ended + ours_ended)),
        "terminated": int(ours_ended[0]),
        "truncated": int(ours_ended[1]),
        "other_ends": int(theirs_ended != ours_ended),
    }
    return {**errors, "return_error": relative(*np.sum(rewards, axis=0))}, counts


def relative(a: Any, b: Any) -> float:
    """Largest |a - b| / (1 + |b|)."""
    return float(np.max(np.abs(np.subtract(a, b)) / (1 + np.abs(b))))


# Where episodes begin


def resets_needed(columns: int) -> int:
    """Resets of each side, so that a Kolmogorov-Smirnov distance of SEEN in a column is seen."""
    critical = math.sqrt(-math.log(ALPHA / columns / 2) / 2) * math.sqrt(2)
    noise = stats.norm.ppf(POWER) * math.sqrt(0.5)
    return math.ceil(((critical + noise) / SEEN) ** 2)


def resets(env_id: str, backend: str, size: int | None, seed: int) -> Figures:
    """Two-sample Kolmogorov-Smirnov test of every column, and correlations of every pair."""
    single, other = gym.make(env_id), make_other(env_id, backend, 64)
    columns = _size(single)
    n = size or resets_needed(columns)
    first, _ = single.reset(seed=seed)
    rows = [first, *(single.reset()[0] for _ in range(n - 1))]
    ours = np.array([_flat(single, obs) for obs in rows])
    batches = [other.reset(seed=seed)[0].copy()]
    while 64 * len(batches) < n:
        batches.append(other.reset()[0].copy())
    theirs = np.array([_flat(single, obs) for obs in np.concatenate(batches)[:n]])
    other.close()
    single.close()
    ours, theirs = (np.round(x.astype(np.float64), 6) for x in (ours, theirs))
    tests = [stats.ks_2samp(a, b, method="asymp") for a, b in zip(ours.T, theirs.T, strict=True)]
    off = _correlations_apart(ours, theirs)
    smallest = min(test.pvalue for test in tests)
    return {
        "resets": n,
        "resets_needed": resets_needed(columns),
        "columns": columns,
        "constant_columns": int((np.ptp(ours, axis=0) == 0).sum()),
        "ks_distance": float(max(test.statistic for test in tests)),
        "ks_p": float(smallest),
        "correlation_apart": off,
        "agrees": bool(smallest >= ALPHA / columns and off <= CORRELATION),
    }


def _size(env: gym.Env) -> int:
    return spaces.flatdim(env.observation_space)


def _flat(env: gym.Env, obs: Any) -> NDArray:
    return np.asarray(spaces.flatten(env.observation_space, obs))


def _correlations_apart(ours: NDArray, theirs: NDArray) -> float:
    varies = (np.std(ours, axis=0) > 1e-5) & (np.std(theirs, axis=0) > 1e-5)
    if varies.sum() < 2:
        return 0.0
    matrices = [np.corrcoef(x[:, varies], rowvar=False) for x in (ours, theirs)]
    return float(np.abs(matrices[0] - matrices[1]).max())


# Whole episodes


def episodes_needed(returns: NDArray, tests: int) -> int:
    """Episodes of each side, so that 2% of the mean return is seen."""
    z = stats.norm.isf(ALPHA / tests / 2) + stats.norm.ppf(POWER)
    return math.ceil(2 * (z * returns.std(ddof=1) / (SEEN * abs(returns.mean()))) ** 2)


def episodes(env_id: str, backend: str, size: int | None, seed: int) -> Figures:
    """Two-sample tests of returns, lengths, last rewards and last observations.

    Under each of two fixed actions, and under random ones.
    """
    single = gym.make(env_id)
    single.action_space.seed(seed)
    fixed = [single.action_space.sample() for _ in range(2)]
    num_tests = 3 * (5 + _size(single))
    rows = {}
    for name, action in (("fixed 1", fixed[0]), ("fixed 2", fixed[1]), ("random", None)):
        pilot = _single_episodes(single, 300 if size is None else size, action, seed)
        n = size or max(episodes_needed(pilot[:, 0], num_tests), 300)
        ours = np.concatenate([pilot, _single_episodes(single, n - len(pilot), action, seed + 1)])
        theirs = _vector_episodes(make_other(env_id, backend, 64), n, action, seed)
        rows[name] = _two_samples(ours, theirs, ALPHA / num_tests)
        if not rows[name]["agrees"]:
            break  # the rest can't change the verdict
    single.close()
    return {"plays": rows, "agrees": all(row["agrees"] for row in rows.values())}


def _single_episodes(env: gym.Env, n: int, action: Any, seed: int) -> NDArray:
    """Rows [n, 4 + d]: return, length, terminated, last reward, last observation."""
    rows = []
    for k in range(n):
        env.reset(seed=seed if k == 0 else None)
        total, length, ended = 0.0, 0, False
        while not ended:
            chosen = env.action_space.sample() if action is None else action
            obs, reward, terminated, truncated, _ = env.step(chosen)
            total, length, ended = total + float(reward), length + 1, terminated or truncated
        rows.append([total, length, terminated, reward, *_flat(env, obs)])
    return np.reshape(np.array(rows, np.float64), (len(rows), 4 + _size(env)))


def _vector_episodes(env: VectorEnv, n: int, action: Any, seed: int) -> NDArray:
    """The same rows; every copy plays as many episodes, so that short ones don't lead."""
    env.action_space.seed(seed)
    quota = math.ceil(n / env.num_envs)
    rows: list[list[NDArray]] = [[] for _ in range(env.num_envs)]
    env.reset(seed=seed)
    total, length = np.zeros(env.num_envs), np.zeros(env.num_envs)
    done = np.zeros(env.num_envs, bool)
    fixed = None if action is None else np.repeat(np.asarray(action)[None], env.num_envs, 0)
    while min(map(len, rows)) < quota:
        chosen = env.action_space.sample() if fixed is None else fixed
        obs, reward, terminated, truncated, _ = env.step(chosen)
        total, length = np.where(done, 0, total + reward), np.where(done, 0, length + 1)
        done = terminated | truncated
        for i in np.flatnonzero(done):
            if len(rows[i]) < quota:
                row = [total[i], length[i], terminated[i], reward[i]]
                rows[i].append(np.concatenate([row, np.ravel(obs[i])]))
    env.close()
    return np.concatenate([np.array(part, np.float64) for part in rows])


def _two_samples(ours: NDArray, theirs: NDArray, level: float) -> Figures:
    """Welch's test of the mean return, Kolmogorov-Smirnov tests of every column."""
    ours, theirs = np.round(ours, 6), np.round(theirs, 6)
    tests = [stats.ks_2samp(a, b, method="asymp") for a, b in zip(ours.T, theirs.T, strict=True)]
    smallest = float(min(test.pvalue for test in tests))
    means = ours[:, 0].mean(), theirs[:, 0].mean()
    p_mean = (
        stats.ttest_ind(ours[:, 0], theirs[:, 0], equal_var=False).pvalue
        if np.ptp(ours[:, 0]) > 0
        else 1.0
    )
    return {
        "episodes": len(ours),
        "mean_return": float(means[0]),
        "mean_return_other": float(means[1]),
        "std_return": float(ours[:, 0].std(ddof=1)),
        "mean_length": float(ours[:, 1].mean()),
        "mean_length_other": float(theirs[:, 1].mean()),
        "mean_p": float(p_mean),
        "ks_distance": float(max(test.statistic for test in tests)),
        "ks_p": smallest,
        "agrees": bool(min(smallest, p_mean) >= level),
    }
