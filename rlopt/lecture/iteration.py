"""Values and approximate policy iteration: what a new policy gains, and what it can lose."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlopt import tabular
from rlopt.enumeration import enumerate_trajectories, example
from rlopt.lecture.results import Result, random_pi
from rlopt.rows import Row, at_most
from rlopt.tabular import TabularMDP


def performance_difference_lemma(seed: int) -> Result:
    """Slide "The Performance Difference Lemma (PDL)": V~ - V = E_{tau ~ rho~} sum_h A_h.

    From every start state, on random MDPs, on FrozenLake, and summed over all trajectories.
    """
    mdps = [tabular.random_mdp(6, 3, 8, draw) for draw in range(20 * seed, 20 * seed + 20)]
    mdps.append(tabular.from_gymnasium("FrozenLake-v1", horizon=30))
    errors = []
    for draw, mdp in enumerate(mdps, 21 * seed):
        _, S, A = mdp.shape
        old, new = random_pi(S, A, 2 * draw), random_pi(S, A, 2 * draw + 1)
        difference = tabular.values(mdp, new).V[0] - tabular.values(mdp, old).V[0]
        errors.append((difference - tabular.performance_difference(mdp, old, new)).abs().max())
    ex = example(seed)
    new, taus = random_pi(4, 3, seed), enumerate_trajectories(ex.mdp)
    steps = torch.arange(ex.mdp.horizon).expand_as(taus.state)
    A_tau = tabular.values(ex.mdp, ex.pi).A[steps, taus.state, taus.action] * taus.active
    difference = tabular.expected_return(ex.mdp, new) - tabular.expected_return(ex.mdp, ex.pi)
    enumerated = taus.log_prob(new).exp() @ A_tau.sum(-1)
    return Result([
        at_most("21 MDPs, every start state", max(errors), 1e-10),
        at_most("sum over all trajectories", (enumerated - difference).abs(), 1e-10),
    ])  # fmt: skip


def degradation_bound(seed: int) -> Result:
    """Slide "Back to Approximate Policy Iteration (API)": V^{k+1}(s_0) >= V^k(s_0) - H |Delta_inf|.

    The step is greedy in advantages with errors. The bound is reached where the wrong action leads
    into a state from which it is chosen again: "we get trapped at this state".
    """
    changes, bounds = [], []
    for draw in range(300 * seed, 300 * seed + 300):
        mdp = tabular.random_mdp(5, 3, 6, draw)
        old = random_pi(5, 3, draw)
        V, _, A = tabular.values(mdp, old)
        noise = torch.from_numpy(np.random.default_rng(draw).standard_normal(A.shape))
        new = tabular.greedy(A + 2 * (draw % 4) * noise)
        changes.append(tabular.values(mdp, new).V[0] - V[0])
        bounds.append(tabular.degradation_bound(mdp, old, new) - V[0])
    change, bound = torch.stack(changes), torch.stack(bounds)

    mdp, old, new = trap()
    V_old, V_new = tabular.values(mdp, old).V[0], tabular.values(mdp, new).V[0]
    reached = tabular.degradation_bound(mdp, old, new)
    rows = [
        Row("300 random MDPs, smallest slack", float((change - bound).min()), 0.0, np.inf),
        Row("share of their states that degrade", float((change < 0).double().mean()), 0.05, 1.0),
        at_most("slack on the constructed MDP", (V_new - reached).abs().max(), 1e-12),
    ]
    trapped = (reached - V_old, V_new - V_old)
    return Result(rows, {"bound": bound, "change": change, "trap": trapped})


def trap() -> tuple[TabularMDP, Tensor, Tensor]:
    """States safe and trap, actions leave and enter (reward -1): the old pi leaves, the new enters.

    A_h(s, enter) = -1 everywhere, so that the new policy loses exactly H.
    """
    P = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)  # action 0 to safe, 1 to trap
    R = torch.tensor([[0.0, -1.0], [0.0, -1.0]], dtype=torch.float64)
    mu, leave, enter = R.new_tensor([1, 0]), R.new_tensor([[1, 0]] * 2), R.new_tensor([[0, 1]] * 2)
    return TabularMDP(P, R, mu, 6, torch.tensor([False, False])), leave, enter
