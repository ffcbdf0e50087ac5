"""The lecture's one-parameter example: one state, two actions, PG against NPG."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from rlopt import tabular
from rlopt.algos.npg import NPG
from rlopt.algos.pg import PG
from rlopt.distributions import Categorical
from rlopt.fisher import fisher_operator
from rlopt.lecture.results import UNDAMPED, Result, estimated_gradient, gap
from rlopt.rows import Row, at_most
from rlopt.tabular import TabularMDP, action_probabilities, parameters_of
from rlopt.types import Batch


class LogisticPolicy(nn.Module):
    """The lecture's one parameter: pi_1 = e^theta / (1 + e^theta), pi_2 = 1 / (1 + e^theta)."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta], dtype=torch.float64))

    def dist_params(self, obs: Tensor) -> Tensor:
        """Logits (theta, 0) [B, 2]."""
        theta = self.theta.expand(len(obs))
        return torch.stack([theta, torch.zeros_like(theta)], -1)

    def dist(self, params: Tensor) -> Categorical:
        """Logits [B, 2] to the distribution."""
        return Categorical(params)

    def forward(self, obs: Tensor) -> Categorical:
        """Both."""
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs: Tensor) -> None:
        """It has none."""


def two_action_batch(mdp: TabularMDP, policy: nn.Module) -> Batch:
    """Both actions once, the advantage weighted by pi: PG's expectation is exact.

    F depends on the one state only.
    """
    pi = action_probabilities(policy, 1)
    obs = torch.ones(2, 1, dtype=torch.float64)
    return Batch(obs, torch.tensor([0, 1]), 2 * (pi * mdp.R)[0])


def two_action_example(seed: int) -> Result:
    """Slide "Example of Natural Gradient on 1-d problem: 2 actions, 1 state": PG slows down.

    J' = 99 e^theta / (1 + e^theta)^2, F = e^theta / (1 + e^theta)^2; NPG moves by 99 eta a step.

    Nothing is drawn: every seed gives the same rows.
    """
    mdp, eta, iterations = tabular.two_actions(), 0.005, 20
    rules: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "PG": (PG, {"optimizer": partial(SGD, lr=eta)}),
        "NPG": (NPG, {"max_kl": 1.0, "step_size": eta, **UNDAMPED}),
    }
    thetas = torch.linspace(-5, 5, 11, dtype=torch.float64)
    F_formula = thetas.exp() / (1 + thetas.exp()) ** 2
    policies = [LogisticPolicy(theta) for theta in thetas.tolist()]
    batches = [two_action_batch(mdp, policy) for policy in policies]
    slopes = torch.cat([estimated_gradient(*x) for x in zip(policies, batches, strict=True)])
    fisher = torch.cat([
        fisher_operator(policy, batch, "exact")(torch.ones(1, dtype=torch.float64))
        for policy, batch in zip(policies, batches, strict=True)
    ])  # fmt: skip

    paths = {}
    for name, (rule, settings) in rules.items():
        policy, path = LogisticPolicy(0.0), [torch.zeros(1, dtype=torch.float64)]
        for _ in range(iterations):
            rule(policy, **settings).step(two_action_batch(mdp, policy))
            path.append(parameters_of(policy))
        paths[name] = torch.cat(path)
    moves = {name: path.diff() for name, path in paths.items()}
    returns = {name: 1 + 99 * path.sigmoid() for name, path in paths.items()}
    rows = [
        at_most("J' of PG against the slide's", gap(slopes, 99 * F_formula), 1e-12),
        at_most("fisher_operator against the slide's", gap(fisher, F_formula), 1e-12),
        Row("PG: largest step / step before", float((moves["PG"][1:] / moves["PG"][:-1]).max()),
            0.0, 0.999),
        Row("PG: last step / first step", float(moves["PG"][-1] / moves["PG"][0]), 0.0, 0.5),
        at_most("NPG: step / 99 eta - 1", (moves["NPG"] / (99 * eta) - 1).abs().max(), 1e-9),
    ]  # fmt: skip
    return Result(rows, {"theta": paths, "J": returns, "eta": eta})
