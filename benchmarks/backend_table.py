"""Compare the transitions of a toy environment with Gymnasium's table of them."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from backend_compare import ALPHA, POWER, SEEN, Figures, make_other
from numpy.typing import NDArray
from scipy import stats

COPIES = 2048
MOST_STEPS = 60_000_000


class Outcomes:
    """What may follow a state and action, with Gymnasium's probabilities and our counts.

    An outcome is a successor, its reward and whether the episode has ended: K of them in all.
    """

    def __init__(self, env: Any) -> None:
        rows = [(s, a, *row) for s, by in env.P.items() for a, rs in by.items() for row in rs]
        self.rewards = np.unique([float(row[4]) for row in rows])
        self.num_states, self.num_actions = len(env.P), len(env.P[0])
        K = self.num_states * len(self.rewards) * 2
        self.probability = np.zeros((self.num_states, self.num_actions, K))
        self.counts = np.zeros((self.num_states, self.num_actions, K), np.int64)
        self.unknown_rewards = 0
        moves = np.zeros((self.num_states, self.num_actions, self.num_states))
        for s, a, p, successor, reward, end in rows:
            self.probability[s, a, self.outcome(successor, float(reward), end)] += p
            moves[s, a, successor] += 0 if end else p
        self.start = np.asarray(env.initial_state_distrib)
        self.met = self._closure(moves)
        self.policies = np.array([_towards(moves, s) for s in range(self.num_states)])
        self.num_pairs = int(self.met.sum()) * self.num_actions
        self.needed = np.array([[self._visits_needed(p) for p in by] for by in self.probability])

    def outcome(self, successor: Any, reward: Any, end: Any) -> Any:
        """The index of outcomes, scalars or arrays."""
        r = np.minimum(np.searchsorted(self.rewards, reward), len(self.rewards) - 1)
        return (successor * len(self.rewards) + r) * 2 + np.asarray(end, np.int64)

    def _closure(self, moves: NDArray) -> NDArray:
        met = self.start > 0
        for _ in range(self.num_states):
            met = met | (moves[met].sum((0, 1)) > 0)
        return met

    def _visits_needed(self, p: NDArray) -> int:
        if p.max() > 1 - 1e-9:  # another outcome is seen at once
            return math.ceil(math.log(ALPHA / self.num_pairs) / math.log(1 - SEEN))
        z = stats.norm.isf(ALPHA / self.num_pairs / 2) + stats.norm.ppf(POWER)
        return math.ceil((p * (1 - p)).max() * (z / SEEN) ** 2)

    def count(self, s: NDArray, a: NDArray, outcome: NDArray, reward: NDArray) -> None:
        """Take transitions into the counts."""
        K = self.counts.shape[-1]
        index = (s * self.num_actions + a) * K + outcome
        self.counts += np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)
        self.unknown_rewards += int((~np.isin(reward, self.rewards.astype(reward.dtype))).sum())

    def missing(self) -> NDArray:
        """Visits [S, A] that are still needed."""
        lacks = np.maximum(self.needed - self.counts.sum(-1), 0)
        return np.where(self.met[:, None], lacks, 0)

    def figures(self) -> Figures:
        """Smallest p-value over states and actions, and the number of visits."""
        visits = self.counts.sum(-1)
        pairs = list(zip(*np.nonzero(visits), strict=True))
        p = [chi_squared(self.counts[pair], self.probability[pair]) for pair in pairs]
        seen_enough = not self.missing().any()
        agrees = min(p) >= ALPHA / self.num_pairs and self.unknown_rewards == 0 and seen_enough
        return {
            "pairs": self.num_pairs,
            "fewest_visits": int(visits[self.met].min()),
            "visits_needed": int(self.needed[self.met].max()),
            "visited_enough": seen_enough,
            "chi_squared_p": float(min(p)),
            "agrees": bool(agrees),
        }


def _towards(moves: NDArray, target: int) -> NDArray:
    """Actions [S] that reach the target with the largest probability, sooner rather than later."""
    value = np.zeros(len(moves))
    for _ in range(300):
        value[target] = 1
        q = 0.999 * moves @ value
        value = q.max(1)
    return q.argmax(1)


def chi_squared(counts: NDArray, probability: NDArray) -> float:
    """The p-value of counts [K] under probabilities [K]; 0 where the impossible happened."""
    possible = probability > 0
    if counts[~possible].any():
        return 0.0
    if possible.sum() == 1 or counts.sum() == 0:
        return 1.0
    expected = counts.sum() * probability[possible] / probability[possible].sum()
    return float(stats.chisquare(counts[possible], expected).pvalue)


def table(env_id: str, backend: str, most: int, seed: int) -> Figures:
    """Play towards what was visited too little, `most` steps at the most."""
    single = gym.make(env_id)
    outcomes = Outcomes(single.unwrapped)
    other = make_other(env_id, backend, COPIES)
    random = np.random.default_rng(seed)
    state, done = other.reset(seed=seed)[0].copy(), np.zeros(COPIES, bool)
    starts = np.bincount(state, minlength=outcomes.num_states)
    target, steps, rounds = random.integers(outcomes.num_states, size=COPIES), 0, 0
    while steps < most:
        if rounds % 20 == 0:
            missing = outcomes.missing()
            if not missing.any():
                break
        rounds += 1
        on_the_way = outcomes.policies[target, state]
        action = np.where(state == target, missing.argmax(1)[state], on_the_way)
        successor, reward, terminated, truncated, _ = other.step(action)
        live = ~done
        outcome = outcomes.outcome(successor, reward, terminated)[live]
        outcomes.count(state[live], action[live], outcome, reward[live])
        starts += np.bincount(successor[done], minlength=outcomes.num_states)
        state, done = successor.copy(), terminated | truncated
        weights = missing.sum(1) / missing.sum()
        renew = done | (random.random(COPIES) < 0.02)  # of targets that can't be reached
        target = np.where(renew, random.choice(len(weights), COPIES, p=weights), target)
        steps += int(live.sum())
    other.close()
    single.close()
    figures = outcomes.figures()
    start_p = chi_squared(starts, outcomes.start)
    agrees = figures["agrees"] and start_p >= ALPHA
    return {"steps": steps, **figures, "start_p": start_p, "agrees": bool(agrees)}
