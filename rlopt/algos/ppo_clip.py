"""Proximal policy optimisation with a clipped probability ratio."""

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
from rlopt.distributed import gather, total_mean
from rlopt.linalg import set_gradient, std
from rlopt.types import Batch, Policy


class PPOClip:
    """max E[min(r A, clip(r, 1 - eps, 1 + eps) A)] + entropy_bonus E[H], r = pi_theta / pi_k.

    By minibatch SGD, as in CleanRL's ppo.py. An action whose probability has moved by more than
    eps, the way its advantage asks, has no gradient any more; one that has moved the other way has
    its full gradient, however far.

    The baseline is a part of its own, so that CleanRL's shared loss, its weight `vf_coef` and
    `clip_vloss` have no counterpart, and `max_grad_norm` bounds the policy's gradient alone. Early
    stopping takes the analytic KL of the whole batch where CleanRL takes the last minibatch's
    estimate. The trainer standardises advantages over the batch; `standardize_minibatch` does it
    once more over each minibatch, as CleanRL does.

    Args:
        policy: the policy to move.
        optimizer: makes an optimiser from the parameters.
        epochs: passes over the batch, at the most where there is a target_kl.
        minibatch_size: transitions a gradient step at the most, over all processes; a pass is split
            evenly, into whole sequences for a recurrent policy.
        clip_range: eps.
        entropy_bonus: weight of the mean entropy.
        standardize_minibatch: (A - mean) / (std + 1e-8) over the minibatch, with the sample's std.
        max_grad_norm: a longer gradient is shortened to it; None for as it is.
        target_kl: the KL above which no further epoch is begun, or None.

    Source: Schulman et al. 2017, equation 7; Huang et al. 2022, "The 37 implementation details of
    proximal policy optimization".
    """

    def __init__(
        self,
        policy: Policy,
        *,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        epochs: int,
        minibatch_size: int,
        clip_range: float,
        entropy_bonus: float,
        standardize_minibatch: bool,
        max_grad_norm: float | None,
        target_kl: float | None,
    ) -> None:
        check.whole(epochs=epochs, minibatch_size=minibatch_size)
        check.positive(clip_range=clip_range)
        check.non_negative(entropy_bonus=entropy_bonus)
        check.flag(standardize_minibatch=standardize_minibatch)
        check.optimizer(optimizer=optimizer)
        if max_grad_norm is not None:
            check.positive(max_grad_norm=max_grad_norm)
        if target_kl is not None:
            check.positive(target_kl=target_kl)
        self.policy = policy
        self.parameters = list(policy.parameters())
        self.optimizer = optimizer(self.parameters)
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.clip_range = clip_range
        self.entropy_bonus = entropy_bonus
        self.standardize_minibatch = standardize_minibatch
        self.max_grad_norm = max_grad_norm
        self.target_kl = target_kl

    def step(self, batch: Batch) -> dict[str, float]:
        """Several epochs of minibatch steps on the batch.

        Returns:
            `algo/clip_fraction`: share of ratios outside 1 - eps .. 1 + eps, over all epochs.
            `algo/approx_kl`: E[r - 1 - ln r] of the last epoch, each ratio as its step found it.
            `algo/grad_norm`: mean over the steps, before it is shortened.
            `algo/epochs`: how many there were.
        """
        with torch.no_grad():
            old_params = self.policy.dist_params(batch.obs)
            old_log_prob = self.policy.dist(old_params).log_prob(batch.action)

        log_ratios: list[Tensor] = []
        norms: list[Tensor] = []
        for _ in range(self.epochs):
            for index in batch.minibatches(self.minibatch_size):
                log_ratio, norm = self._sgd_step(batch[index], old_log_prob[index])
                log_ratios.append(log_ratio)
                norms.append(norm)
            if self.target_kl is not None and self._kl(old_params, batch) > self.target_kl:
                break

        log_ratio = torch.cat(log_ratios)
        ratio = log_ratio.exp()
        clipped = ((ratio - 1).abs() > self.clip_range).to(ratio)
        last = slice(-len(batch), None)
        return {
            "algo/clip_fraction": float(total_mean(clipped)),
            "algo/approx_kl": float(total_mean((ratio - 1 - log_ratio)[last])),
            "algo/grad_norm": float(torch.stack(norms).mean()),
            "algo/epochs": len(log_ratio) // len(batch),
        }

    def _sgd_step(self, batch: Batch, old_log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """One gradient step; returns ln r [B] from before it and the gradient's norm."""
        A = batch.advantage
        if self.standardize_minibatch:
            everywhere = gather(A)
            A = (A - everywhere.mean()) / (std(everywhere, correction=1) + 1e-8)
        new = self.policy(batch.obs)
        log_ratio = new.log_prob(batch.action) - old_log_prob
        ratio = log_ratio.exp()
        # L^CLIP = E[min(r A, clip(r, 1 - eps, 1 + eps) A)]
        clipped_ratio = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        surrogate = torch.min(ratio * A, clipped_ratio * A)
        objective = batch.expect(surrogate + self.entropy_bonus * new.entropy())
        set_gradient(self.parameters, -objective)  # optimisers descend
        longest = math.inf if self.max_grad_norm is None else self.max_grad_norm
        norm = clip_grad_norm_(self.parameters, longest)
        self.optimizer.step()
        return log_ratio.detach(), norm

    @torch.no_grad()
    def _kl(self, old_params: Tensor, batch: Batch) -> float:
        """E[KL(pi_k || pi_theta)] over the whole batch."""
        old, new = self.policy.dist(old_params), self.policy(batch.obs)
        return float(batch.expect(kl_divergence(old, new)))

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
