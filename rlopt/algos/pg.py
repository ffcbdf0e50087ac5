"""Vanilla policy gradient with a learned baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rlopt import check
from rlopt.linalg import assign_gradient
from rlopt.types import Batch, Policy


class PG:
    """theta <- theta + eta * grad J, with grad J = E[grad ln pi(a | s) A(s, a)].

    The optimiser turns the gradient into a step: `torch.optim.SGD` is the lecture's, `Adam` the
    default.

    Source: lecture, "(M=1) PG with a learned baseline".
    """

    def __init__(
        self, policy: Policy, *, optimizer: Callable[[Iterable[Tensor]], Optimizer]
    ) -> None:
        check.optimizer(optimizer=optimizer)
        self.policy = policy
        self.parameters = list(policy.parameters())
        self.optimizer = optimizer(self.parameters)

    def step(self, batch: Batch) -> dict[str, float]:
        """One gradient step on the batch."""

        def objective(batch: Batch) -> Tensor:
            return self.policy(batch.obs).log_prob(batch.action) * batch.advantage

        g = batch.gradient(objective, self.parameters)
        assign_gradient(self.parameters, -g)  # optimisers descend
        self.optimizer.step()
        return {"algo/grad_norm": float(g.norm())}

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
