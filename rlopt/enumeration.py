"""Every trajectory of a tiny MDP, one by one: the oracle that needs no theorem.

Where all probabilities are multiples of 1/count, repeating each trajectory in proportion makes a
Rollout whose averages *are* the expectations, so that code for sampled data is checked exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlopt.policies import MLPPolicy
from rlopt.tabular import (
    TabularMDP,
    action_probabilities,
    local_advantage,
    parameters_of,
    tabular_policy,
    trajectory_kl,
    values,
)
from rlopt.types import Batch, Rollout

Path = tuple[tuple[int, ...], tuple[int, ...], float]  # states, actions, probability


@dataclass(frozen=True)
class Trajectories:
    """All N trajectories (s_0, a_0, .. s_{H-1}, a_{H-1}), cut where they enter a terminal state.

    Attributes:
        state: [N, H], 0 beyond the end.
        action: [N, H], 0 beyond the end.
        active: [N, H] bool, whether the step was taken.
        chance: [N], the environment's share mu(s_0) prod P(s' | s, a) of the probability.
    """

    state: Tensor
    action: Tensor
    active: Tensor
    chance: Tensor

    def log_prob(self, pi: Tensor) -> Tensor:
        """The log probabilities ln rho_pi(tau) [N] for pi [S, A]; differentiable in pi."""
        log_pi = pi[self.state, self.action].log()
        return self.chance.log() + torch.where(self.active, log_pi, 0.0).sum(-1)


def enumerate_trajectories(mdp: TabularMDP) -> Trajectories:
    """All trajectories that some policy can produce; there are up to (S A)^H."""
    H, _, A = mdp.shape
    ends = mdp.terminal.tolist()
    going: list[Path] = [
        ((s,), (), p) for s, p in enumerate(mdp.mu.tolist()) if p > 0 and not ends[s]
    ]
    complete: list[Path] = []
    for h in range(H):
        taken = [(s, (*a, i), p) for s, a, p in going for i in range(A)]
        if h == H - 1:
            complete += taken
            break
        going = []
        for s, a, p in taken:
            P_next = mdp.P[s[-1], a[-1]]
            to_the_end = float(P_next[mdp.terminal].sum())
            if to_the_end > 0:
                complete.append((s, a, p * to_the_end))
            going += [
                ((*s, t), a, p * q) for t, q in enumerate(P_next.tolist()) if q > 0 and not ends[t]
            ]
    pad = [(0,) * (H - len(a)) for _, a, _ in complete]
    return Trajectories(
        state=torch.tensor([s + z for (s, _, _), z in zip(complete, pad, strict=True)]),
        action=torch.tensor([a + z for (_, a, _), z in zip(complete, pad, strict=True)]),
        active=torch.tensor([[h < len(a) for h in range(H)] for _, a, _ in complete]),
        chance=torch.tensor([p for _, _, p in complete], dtype=torch.float64),
    )


def exact_rollout(mdp: TabularMDP, pi: Tensor, count: int) -> Rollout:
    """A rollout of `count` trajectories, each there count * rho_pi(tau) times.

    Raises:
        ValueError: some count * rho_pi(tau) is not whole.
    """
    trajectories = enumerate_trajectories(mdp)
    shares = count * trajectories.log_prob(pi).exp()
    repeats = shares.round().long()
    if (shares - repeats).abs().max() > 1e-6 or repeats.sum() != count:
        raise ValueError(f"the probabilities of the trajectories are no multiples of 1/{count}")
    H, S, _ = mdp.shape
    state, action, valid = (
        x.repeat_interleave(repeats, 0).T
        for x in (trajectories.state, trajectories.action, trajectories.active)
    )
    obs = torch.zeros(H + 1, count, S, dtype=torch.float64)
    obs[:-1] = torch.eye(S, dtype=torch.float64)[state] * valid[..., None]
    reward = torch.where(valid, mdp.R[state, action], 0.0)
    goes_on = torch.cat([valid[1:], torch.zeros(1, count, dtype=torch.bool)])
    return Rollout(
        obs=obs,
        action=action,
        reward=reward,
        terminated=valid & ~goes_on,
        truncated=torch.zeros_like(valid),
        valid=valid,
        step=torch.arange(H + 1)[:, None].expand(H + 1, count),
        episode_returns=reward.sum(0).tolist(),
        episode_lengths=valid.sum(0).tolist(),
    )


def trajectory_batch(rollout: Rollout, advantage: Tensor) -> Batch:
    """The batch whose `expect` is the lecture's: summed over steps, averaged over trajectories."""
    valid = rollout.valid
    horizon = rollout.num_steps / rollout.num_trajectories
    return Batch(rollout.obs[:-1][valid], rollout.action[valid], advantage[valid], horizon)


def tiny_mdp() -> tuple[TabularMDP, Tensor, int]:
    """An MDP of 4 states (the last terminal), 3 actions, 3 steps; pi [4, 3]; and a count.

    All probabilities are halves and quarters, so that `exact_rollout(mdp, pi, count)` exists.
    """
    next_states = [  # each of the two with probability 1/2
        [(1, 2), (0, 0), (2, 3)],
        [(0, 2), (3, 3), (1, 2)],
        [(0, 0), (1, 3), (2, 0)],
        [(3, 3), (3, 3), (3, 3)],
    ]
    P = torch.nn.functional.one_hot(torch.tensor(next_states), 4).double().mean(-2)
    R = [[1.0, -0.5, 2.0], [0.0, 3.0, -1.0], [0.5, 1.5, -2.0], [0.0, 0.0, 0.0]]
    mu = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    terminal = torch.tensor([False, False, False, True])
    pi = [[0.25, 0.25, 0.5], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
    mdp = TabularMDP(P, torch.tensor(R, dtype=torch.float64), mu, 3, terminal)
    return mdp, torch.tensor(pi, dtype=torch.float64), 512


@dataclass(frozen=True)
class Example:
    """The tiny MDP with a policy network on it, and its trajectories in exact proportion.

    `batch` holds the exact advantages A_h^pi(s_h, a_h).
    """

    mdp: TabularMDP
    pi: Tensor
    policy: MLPPolicy
    theta: Tensor
    rollout: Rollout
    batch: Batch

    def at(self, theta: Tensor) -> Tensor:
        """The policy's table [S, A] at other parameters."""
        return action_probabilities(self.policy, len(self.pi), theta)

    def local_advantage(self, theta: Tensor) -> Tensor:
        """TRPO's objective at theta."""
        return local_advantage(self.mdp, self.pi, self.at(theta))

    def kl(self, theta: Tensor) -> Tensor:
        """KL(rho_pi | rho_theta)."""
        return trajectory_kl(self.mdp, self.pi, self.at(theta))


def example(seed: int) -> Example:
    """The tiny MDP with a random tanh network of 51 parameters, whose Fisher matrix has rank 6."""
    mdp, pi, count = tiny_mdp()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = tabular_policy(pi, hidden_sizes=[6])
    rollout = exact_rollout(mdp, pi, count)
    h, s = rollout.step[:-1], rollout.obs[:-1].argmax(-1)
    advantage = values(mdp, pi).A[h, s, rollout.action]
    batch = trajectory_batch(rollout, torch.where(rollout.valid, advantage, 0.0))
    return Example(mdp, pi, policy, parameters_of(policy), rollout, batch)
