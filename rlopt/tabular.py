"""Exact solutions on small finite-horizon MDPs: the ground truth for everything that is sampled.

Nothing here shares code with the update rules or the Fisher operators, so that either can prove the
other wrong.

S states, A actions, H steps, P parameters; values depend on the step h as in the lecture. A
policy is a table pi [S, A] or, where it depends on the step, [H, S, A]; `action_probabilities`
makes one of any network with discrete actions. A trajectory ends where it enters a terminal
state: no action is taken there, so none counts in the Fisher matrix or in the trajectory KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from rlopt.linalg import flatten
from rlopt.mdp import TabularMDP
from rlopt.mdp import from_gymnasium as from_gymnasium
from rlopt.mdp import random_mdp as random_mdp
from rlopt.mdp import two_actions as two_actions
from rlopt.policies import MLPPolicy

SINGULAR = 1e-10  # eigenvalues of F below this share of the largest are rounding


class Values(NamedTuple):
    """V [H+1, S] with V_H = 0, Q [H, S, A] and A = Q - V [H, S, A]."""

    V: Tensor
    Q: Tensor
    A: Tensor


def values(mdp: TabularMDP, pi: Tensor) -> Values:
    """Q_h = R + P V_{h+1} and V_h = E_{a ~ pi} Q_h, backward from V_H = 0."""
    H, S, _ = mdp.shape
    V, Q = [torch.zeros(S, dtype=torch.float64)], []
    for pi_h in reversed(pi.expand(mdp.shape).unbind()):
        Q.append(mdp.R + mdp.P @ V[-1])
        V.append((pi_h * Q[-1]).sum(-1))
    all_V, all_Q = torch.stack(V[::-1]), torch.stack(Q[::-1])
    return Values(all_V, all_Q, all_Q - all_V[:H, :, None])


def state_distributions(mdp: TabularMDP, pi: Tensor, start: Tensor | None = None) -> Tensor:
    """d_h(s) = P(s_h = s) from mu, or from any other `start` [.., S]: [H, .., S]."""
    d = [mdp.mu if start is None else start]
    for pi_h in pi.expand(mdp.shape).unbind()[:-1]:
        d.append(torch.einsum("...s,sa,sat->...t", d[-1], pi_h, mdp.P))
    return torch.stack(d)


def visits(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """The probability [H, S] that an action is taken in s at step h: d_h without its terminals."""
    return state_distributions(mdp, pi) * ~mdp.terminal


def expected_return(mdp: TabularMDP, pi: Tensor) -> Tensor:
    """J = E_{s ~ mu} V_0(s): scalar."""
    return mdp.mu @ values(mdp, pi).V[0]


def performance_difference(mdp: TabularMDP, old: Tensor, new: Tensor) -> Tensor:
    """E_{tau ~ rho_{new, s}} [sum_h A_h^old(s_h, a_h)] for every start state s: [S].

    Source: lecture, "The Performance Difference Lemma (PDL)": equals V^new(s) - V^old(s).
    """
    d = state_distributions(mdp, new, torch.eye(len(mdp.mu), dtype=torch.float64))
    return torch.einsum("hns,hsa,hsa->n", d, new.expand(mdp.shape), values(mdp, old).A)


def local_advantage(mdp: TabularMDP, old: Tensor, new: Tensor) -> Tensor:
    """E_{s_h ~ rho_old} [sum_h E_{a ~ new(s_h)} A_h^old(s_h, a)]: scalar, TRPO's objective.

    Source: lecture, "Trust Region Policy Optimization (TRPO)".
    """
    return torch.einsum("hs,hsa,hsa->", visits(mdp, old), new.expand(mdp.shape), values(mdp, old).A)


def trajectory_kl(mdp: TabularMDP, old: Tensor, new: Tensor) -> Tensor:
    """KL(rho_old | rho_new) = sum_h E_{s ~ d_h^old} KL(old(s) | new(s)): scalar.

    The transitions are the same on both sides and cancel.

    Source: lecture, "The regularization term is".
    """
    kl = (torch.xlogy(old, old) - torch.xlogy(old, new)).sum(-1)  # [S] or [H, S]
    weight = visits(mdp, old)
    return (weight * torch.where(weight > 0, kl, 0.0)).sum()  # no 0 * inf where nobody comes


# Exact functions of a policy network and its flat parameters theta [P]


def tabular_policy(pi: Tensor, hidden_sizes: Sequence[int] = ()) -> MLPPolicy:
    """A policy network in float64 whose probabilities at one-hot states are pi [S, A] > 0.

    Without hidden layers it is the tabular softmax; a hidden layer needs at least S units, on which
    the last layer is solved for the logits ln pi.
    """
    S, A = pi.shape
    box = spaces.Box(0, 1, (S,))
    policy = MLPPolicy(
        box,
        spaces.Discrete(A),
        hidden_sizes=hidden_sizes,
        activation="tanh",
        distribution="gaussian",
        log_std_init=0.0,
        output_gain=1.0,
        orthogonal_init=True,
        normalize_obs=False,
    ).double()
    last = policy.network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        features = policy.network[:-1](torch.eye(S, dtype=torch.float64))
        last.weight.copy_(torch.linalg.lstsq(features, pi.log()).solution.T)
        last.bias.zero_()
    return policy


def parameters_of(policy: nn.Module) -> Tensor:
    """A copy of the policy's parameters theta [P], in the order that the update rules use."""
    return flatten(policy.parameters()).detach()


def action_probabilities(policy: nn.Module, num_states: int, theta: Tensor | None = None) -> Tensor:
    """The table pi [S, A] in float64: the policy at one-hot states, at theta [P] if given.

    Call `policy.double()` first where more than float32's seven digits are wanted.
    """
    theta = parameters_of(policy) if theta is None else theta
    named = dict(policy.named_parameters())
    parts = theta.split([p.numel() for p in named.values()])
    replaced = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
    one_hot = torch.eye(num_states, dtype=theta.dtype)
    return functional_call(policy, replaced, (one_hot,)).probs.double()


def policy_gradient(mdp: TabularMDP, policy: nn.Module) -> Tensor:
    """The gradient of J [P] by automatic differentiation through the exact J."""
    S = len(mdp.mu)
    return grad(lambda theta: expected_return(mdp, action_probabilities(policy, S, theta)))(
        parameters_of(policy)
    )


def scores(policy: nn.Module, num_states: int) -> Tensor:
    """The table grad ln pi(a | s) [S, A, P]."""
    return jacrev(lambda theta: action_probabilities(policy, num_states, theta).log())(
        parameters_of(policy)
    )


def policy_gradient_theorem(mdp: TabularMDP, policy: nn.Module) -> Tensor:
    """The gradient of J [P] as sum_h E_{s ~ d_h, a ~ pi} [grad ln pi(a | s) A_h(s, a)].

    Source: lecture, "First Order Expansion on the Objective Function".
    """
    pi = action_probabilities(policy, len(mdp.mu))
    weight = (visits(mdp, pi)[..., None] * pi * values(mdp, pi).A).sum(0)
    return torch.einsum("sa,sap->p", weight, scores(policy, len(mdp.mu)))


def fisher_matrix(mdp: TabularMDP, policy: nn.Module) -> Tensor:
    """F [P, P] = E_tau [sum_h grad ln pi(a_h | s_h) (grad ln pi(a_h | s_h))^T].

    Source: lecture, "NPG: A leading order equivalent program to TRPO".
    """
    pi, score = action_probabilities(policy, len(mdp.mu)), scores(policy, len(mdp.mu))
    weight = visits(mdp, pi).sum(0)[:, None] * pi
    return torch.einsum("sa,sap,saq->pq", weight, score, score)


# Exact steps


def greedy(advantage: Tensor) -> Tensor:
    """The step of approximate policy iteration: [H, S, A], all on the best approximate advantage.

    Source: lecture, "Back to Approximate Policy Iteration (API)".
    """
    num_actions = advantage.shape[-1]
    return nn.functional.one_hot(advantage.argmax(-1), num_actions).double()


def degradation_bound(mdp: TabularMDP, old: Tensor, new: Tensor) -> Tensor:
    """V^old(s_0) - H |Delta_inf| [S], below which V^new(s_0) cannot fall.

    Delta_inf = min_{h, s} A_h^old(s, new(s)), taken as 0 where it is positive.

    Source: lecture, "Back to Approximate Policy Iteration (API)".
    """
    V, _, A = values(mdp, old)
    worst = (new.expand(mdp.shape) * A).sum(-1).min().clamp(max=0)
    return V[0] - mdp.horizon * worst.abs()


def natural_gradient_step(
    mdp: TabularMDP, policy: nn.Module, delta: float, damping: float = 0.0
) -> Tensor:
    """Parameters [P] after one exact NPG step: argmax g . x s.t. x^T F x <= delta.

    The lecture's delta, without Taylor's 1/2: eta = sqrt(delta / g^T F^-1 g). A softmax has more
    parameters than its distributions have dimensions, so F is singular: without damping F^-1 is the
    pseudo-inverse (g lies in F's range), with it F^-1 is (F + damping I)^-1.

    Source: lecture, "There is a closed form update".
    """
    g, F = policy_gradient(mdp, policy), fisher_matrix(mdp, policy)
    if damping == 0:
        direction = torch.linalg.pinv(F, rtol=SINGULAR, hermitian=True) @ g
    else:
        direction = torch.linalg.solve(F + damping * torch.eye(len(g), dtype=F.dtype), g)
    slope = g @ direction
    eta = (delta / slope).sqrt() if slope > 0 else torch.zeros_like(slope)
    return parameters_of(policy) + eta * direction


def trust_region_step(mdp: TabularMDP, policy: nn.Module, delta: float) -> Tensor:
    """Parameters [P] after one exact TRPO step: argmax local advantage s.t. trajectory KL <= delta.

    Solved by scipy's SLSQP (extra `bench`) from halfway along the NPG step, in coordinates in which
    the constraint is the unit ball to leading order: theta = theta_k + sqrt(2 delta) F^-1/2 y.
    These span F's range; what is left out changes no visited state's distribution to first order.

    Raises:
        RuntimeError: the solver did not reach a point that meets the conditions for an optimum.

    Source: lecture, "Trust Region Policy Optimization (TRPO)".
    """
    from scipy.optimize import minimize

    S, theta = len(mdp.mu), parameters_of(policy)
    old, g = action_probabilities(policy, S), policy_gradient(mdp, policy)
    eigenvalues, basis = torch.linalg.eigh(fisher_matrix(mdp, policy))
    kept = eigenvalues > SINGULAR * eigenvalues.max()
    B = (2 * delta) ** 0.5 * basis[:, kept] / eigenvalues[kept].sqrt()
    slope = (B.T @ g).norm()
    if slope == 0:
        return theta
    # What does not depend on theta is summed over the steps once.
    weight, weighted_A = visits(mdp, old), values(mdp, old).A
    weighted_A = torch.einsum("hs,hsa->sa", weight, weighted_A)

    def loss(y: Tensor) -> Tensor:
        return -(weighted_A * action_probabilities(policy, S, theta + B @ y)).sum() / slope

    def slack(y: Tensor) -> Tensor:
        new = action_probabilities(policy, S, theta + B @ y)
        return 1 - trajectory_kl(mdp, old, new) / delta

    result = minimize(
        lambda y: float(loss(torch.from_numpy(y))),
        (B.T @ g / slope / 2).numpy(),
        jac=lambda y: grad(loss)(torch.from_numpy(y)).numpy(),
        constraints={
            "type": "ineq",
            "fun": lambda y: float(slack(torch.from_numpy(y))),
            "jac": lambda y: grad(slack)(torch.from_numpy(y)).numpy(),
        },
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 300},
    )
    # SLSQP calls it a failure where rounding stops it at the optimum, so the conditions for one are
    # checked instead: grad loss = multiplier * grad slack, multiplier >= 0, slack = 0.
    y = torch.from_numpy(result.x)
    a, b = grad(loss)(y), grad(slack)(y)
    residual = (a - (a @ b / (b @ b)).clamp(min=0) * b).norm() + slack(y).abs()
    if not residual < 1e-5:
        raise RuntimeError(f"exact TRPO, delta={delta}: residual {residual:.1e}, {result.message}")
    return theta + B @ y
