"""Vanilla policy gradient with a learned baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rlopt.distributed import total_gradients
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
        self.policy = policy
        self.optimizer = optimizer(policy.parameters())

    def step(self, batch: Batch) -> dict[str, float]:
        """One gradient step on the batch."""
        log_prob = self.policy(batch.obs).log_prob(batch.action)
        objective = batch.expect(log_prob * batch.advantage)
        self.optimizer.zero_grad()
        (-objective).backward()  # optimisers descend
        total_gradients(self.policy.parameters())
        self.optimizer.step()
        squared_norm = sum(p.grad.square().sum() for p in self.policy.parameters())
        return {"algo/grad_norm": float(squared_norm**0.5)}

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
