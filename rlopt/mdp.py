"""Small finite-horizon MDPs, from arrays or from Gymnasium, and as environments to sample from.

S states, A actions, H steps. rlopt/tabular.py solves them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


@dataclass(frozen=True)
class TabularMDP:
    """A finite MDP with horizon H; all tensors float64.

    Attributes:
        P: [S, A, S], P[s, a, s'] = P(s' | s, a).
        R: [S, A], the expected reward of a in s.
        mu: [S], distribution of the initial state.
        horizon: H, the number of steps h = 0 .. H-1.
        terminal: [S] bool; terminal states are absorbing and their rewards 0.

    Raises:
        ValueError: the arrays do not describe such an MDP.
    """

    P: Tensor
    R: Tensor
    mu: Tensor
    horizon: int
    terminal: Tensor

    def __post_init__(self) -> None:
        S, A = self.R.shape
        if self.P.shape != (S, A, S) or self.mu.shape != (S,) or self.terminal.shape != (S,):
            raise ValueError(
                "needs P [S, A, S], R [S, A], mu [S], terminal [S], got "
                f"{[tuple(x.shape) for x in (self.P, self.R, self.mu, self.terminal)]}"
            )
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")
        for name, x in (("P", self.P), ("mu", self.mu)):
            if (x < 0).any() or (x.sum(-1) - 1).abs().max() > 1e-9:
                raise ValueError(f"{name} is not a distribution along its last dimension")
        ends = self.terminal.nonzero()[:, 0]
        if (self.P[ends, :, ends] < 1).any() or self.R[ends].any():
            raise ValueError("terminal states must be absorbing, with reward 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, S, A."""
        return (self.horizon, *self.R.shape)


def from_gymnasium(env: str | gym.Env, horizon: int) -> TabularMDP:
    """The MDP of an environment with a transition table `env.unwrapped.P`.

    P[s][a] is a list of (probability, next state, reward, terminated), and the initial distribution
    is `initial_state_distrib`: FrozenLake, CliffWalking, Taxi. Wrappers are not seen.

    Raises:
        ValueError: no such table, or one that is not an MDP over its states alone.
    """
    inner: Any = (gym.make(env) if isinstance(env, str) else env).unwrapped
    try:
        table, mu = inner.P, torch.as_tensor(inner.initial_state_distrib, dtype=torch.float64)
    except AttributeError as error:
        raise ValueError(f"env={env} does not expose its transition table: {error}") from error
    if getattr(inner, "fickle_passenger", False):
        raise ValueError("Taxi's fickle_passenger is not in its transition table")
    S, A = len(table), len(table[0])
    P, R = torch.zeros(S, A, S, dtype=torch.float64), torch.zeros(S, A, dtype=torch.float64)
    ends, goes_on = torch.zeros(S, dtype=torch.bool), torch.zeros(S, S, dtype=torch.bool)
    for s in range(S):
        for a in range(A):
            for probability, s_next, reward, terminated in table[s][a]:
                P[s, a, s_next] += probability
                R[s, a] += probability * reward
                ends[s_next] |= bool(terminated)
                goes_on[s, s_next] |= not terminated
    P[ends], R[ends] = torch.eye(S, dtype=torch.float64)[ends, None], 0.0
    alive = _reachable(P, mu) & ~ends
    if (goes_on[alive].any(0) & ends).any():
        raise ValueError(f"env={env}: a state is entered both with and without termination")
    return TabularMDP(P, R, mu, horizon, ends)


def _reachable(P: Tensor, mu: Tensor) -> Tensor:
    """The states [S] that some policy reaches in any number of steps."""
    reached, step = mu > 0, (P.sum(1) > 0).double()
    while (more := reached | (reached.double() @ step > 0)).sum() > reached.sum():
        reached = more
    return reached


def two_actions() -> TabularMDP:
    """J = 100 pi_1 + 1 pi_2: one state, one step.

    Source: lecture, "Example of Natural Gradient on 1-d problem: 2 actions, 1 state".
    """
    one = torch.ones(1, dtype=torch.float64)
    rewards = torch.tensor([[100.0, 1.0]], dtype=torch.float64)
    return TabularMDP(one.expand(1, 2, 1), rewards, one, 1, torch.tensor([False]))


def random_mdp(num_states: int, num_actions: int, horizon: int, seed: int) -> TabularMDP:
    """Uniform random transitions and standard normal rewards; no terminal state."""
    rng = np.random.default_rng(seed)
    P = torch.from_numpy(rng.dirichlet(np.ones(num_states), (num_states, num_actions)))
    R = torch.from_numpy(rng.standard_normal((num_states, num_actions)))
    mu = torch.from_numpy(rng.dirichlet(np.ones(num_states)))
    return TabularMDP(P, R, mu, horizon, torch.zeros(num_states, dtype=torch.bool))


class TabularEnv(gym.Env):
    """Any TabularMDP to sample from; it terminates at the horizon, where the lecture's V_H is 0."""

    def __init__(self, mdp: TabularMDP) -> None:
        self.mdp = mdp
        _, S, A = mdp.shape
        self.observation_space, self.action_space = spaces.Discrete(S), spaces.Discrete(A)
        self._first, self._next = mdp.mu.cumsum(0).numpy(), mdp.P.cumsum(-1).numpy()
        self._reward, self._terminal = mdp.R.tolist(), mdp.terminal.tolist()

    def _draw(self, cumulative: np.ndarray) -> int:
        last = len(cumulative) - 1  # rounding may leave the last sum below the draw
        return min(int(np.searchsorted(cumulative, self.np_random.random(), "right")), last)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """A state drawn from mu."""
        super().reset(seed=seed)
        self._h, self._state = 0, self._draw(self._first)
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """A state drawn from P(. | s, a), and R(s, a)."""
        reward = self._reward[self._state][action]
        self._state = self._draw(self._next[self._state, action])
        self._h += 1
        terminated = self._terminal[self._state] or self._h == self.mdp.horizon
        return self._state, reward, terminated, False, {}


def two_actions_env() -> TabularEnv:
    """The entry point of rlopt/TwoActions-v0."""
    return TabularEnv(two_actions())


gym.register("rlopt/Tabular-v0", entry_point=f"{__name__}:TabularEnv")  # env.kwargs: mdp
gym.register("rlopt/TwoActions-v0", entry_point=f"{__name__}:two_actions_env")
