"""Proximal policy optimisation with a KL penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from rlopt import check
from rlopt.linalg import set_gradient
from rlopt.types import Batch, Policy


class PPO:
    """max E[pi_theta / pi_k A] - penalty * E[KL(pi_k || pi_theta)] by minibatch SGD.

    The Lagrangian relaxation of TRPO. The penalty (the lecture's lambda) is fixed, or adapted once
    an iteration on the KL of the whole batch: doubled above 1.5 target_kl, halved below target_kl /
    1.5, within `penalty_range`.

    Args:
        policy: the policy to move.
        optimizer: makes an optimiser from the parameters.
        epochs: passes over the batch.
        minibatch_size: transitions a gradient step at the most, over all processes; a pass is split
            evenly, into whole sequences for a recurrent policy.
        penalty: lambda, where it is adapted the first one.
        target_kl: the KL that the penalty is adapted to, or None for a fixed penalty.
        penalty_range: [smallest, largest] adapted penalty.
        max_grad_norm: a longer gradient of a minibatch is shortened to this norm; None: never. The
            ratio grows exponentially in what the KL penalises quadratically, so one action far out
            can have all the gradient, and then all of Adam's second moment for thousands of steps.
        kl: `analytic`, or `sampled`: the lecture's ln pi_k(a | s) - ln pi_theta(a | s), whose
            gradient is that of ln 1 / pi_theta. The adaptation always takes the analytic one.

    Source: lecture, "Proximal policy optimization"; Schulman et al. 2017, section 4.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        epochs: int,
        minibatch_size: int,
        penalty: float,
        target_kl: float | None,
        penalty_range: tuple[float, float],
        max_grad_norm: float | None,
        kl: str,
    ) -> None:
        check.whole(epochs=epochs, minibatch_size=minibatch_size)
        check.non_negative(penalty=penalty)
        check.one_of(["analytic", "sampled"], kl=kl)
        check.optimizer(optimizer=optimizer)
        check.interval(penalty_range=penalty_range)
        if max_grad_norm is not None:
            check.positive(max_grad_norm=max_grad_norm)
        if target_kl is not None:
            check.positive(target_kl=target_kl, penalty_range=penalty_range[0])
            check.between(*penalty_range, penalty=penalty)  # where it is adapted it would jump
        self.policy = policy
        self.parameters = list(policy.parameters())
        self.optimizer = optimizer(self.parameters)
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.penalty = penalty
        self.target_kl = target_kl
        self.penalty_range = penalty_range
        self.max_grad_norm = max_grad_norm
        self.kl = kl

    def step(self, batch: Batch) -> dict[str, float]:
        """Several epochs of minibatch steps on the batch, then the adaptation of the penalty.

        Returns:
            `algo/penalty`: lambda of these steps.
            `algo/grad_norm`: mean over the steps, before it is shortened.
        """
        with torch.no_grad():
            old_params = self.policy.dist_params(batch.obs)
            old_log_prob = self.policy.dist(old_params).log_prob(batch.action)

        norms = [
            self._sgd_step(batch[index], old_params[index], old_log_prob[index])
            for _ in range(self.epochs)
            for index in batch.minibatches(self.minibatch_size)
        ]

        norm = float(torch.stack(norms).mean())
        metrics = {"algo/penalty": self.penalty, "algo/grad_norm": norm}
        if self.target_kl is not None:
            with torch.no_grad():
                old, new = self.policy.dist(old_params), self.policy(batch.obs)
                self._adapt_penalty(float(batch.expect(kl_divergence(old, new))))
        return metrics

    def _sgd_step(self, batch: Batch, old_params: Tensor, old_log_prob: Tensor) -> Tensor:
        """One gradient step; returns the gradient's norm."""
        new = self.policy(batch.obs)
        log_ratio = new.log_prob(batch.action) - old_log_prob
        surrogate = log_ratio.exp() * batch.advantage
        if self.kl == "analytic":
            kl = kl_divergence(self.policy.dist(old_params), new)
        else:
            kl = -log_ratio
        objective = batch.expect(surrogate - self.penalty * kl)
        set_gradient(self.parameters, -objective)  # optimisers descend
        longest = math.inf if self.max_grad_norm is None else self.max_grad_norm
        norm = clip_grad_norm_(self.parameters, longest)
        self.optimizer.step()
        return norm

    def _adapt_penalty(self, kl: float) -> None:
        assert self.target_kl is not None
        if kl > 1.5 * self.target_kl:
            self.penalty *= 2
        elif kl < self.target_kl / 1.5:
            self.penalty /= 2
        smallest, largest = self.penalty_range
        self.penalty = min(max(self.penalty, smallest), largest)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the adapted penalty."""
        return {"optimizer": self.optimizer.state_dict(), "penalty": self.penalty}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.penalty = state["penalty"]
