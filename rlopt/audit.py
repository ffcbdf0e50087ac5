"""What an update did, against what its quadratic model predicted, alike for every rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rlopt.fisher import exact_metric
from rlopt.linalg import assign, flatten
from rlopt.types import Batch, Policy

CURVATURE_SAMPLES = 256
WIDTH = 1e-2  # of the central difference along the step


def copied(policy: Any) -> dict[str, Tensor]:
    """The parameters of a policy by name."""
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def histograms(
    policy: Any, before: Mapping[str, Tensor], advantage: Tensor, ratio: Tensor
) -> dict[str, Tensor]:
    """What an update's histograms show: parameters, their step from `before`, and the batch's.

    Args:
        policy: the policy after the update.
        before: `copied` before it.
        advantage: [B], as the update saw it.
        ratio: [B], pi_new(a | s) / pi_old(a | s).
    """
    after = copied(policy)
    return {
        **{f"parameters/{name}": after[name] for name in after},
        **{f"step/{name}": after[name] - before[name] for name in after},
        "batch/advantage": advantage,
        "batch/ratio": ratio,
    }


class Audit:
    """Taken before an update, asked after it.

    Attributes:
        old: the policy's distributions on the batch before the update.
    """

    def __init__(self, policy: Policy, batch: Batch) -> None:
        self.policy = policy
        self.batch = batch
        self.parameters = list(policy.parameters())
        self.theta = flatten(self.parameters).detach()
        halves = batch.halves()
        params, self.gradients = zip(*map(self._differentiate, halves), strict=True)
        # whole sequences don't divide evenly; of rows it is one at the most that is left over
        self.weight = 0.5 if batch.starts is None else halves[0].count / batch.count
        self.old = policy.dist(torch.cat(params))

    def metrics(self) -> dict[str, float]:
        """Compare the step that was taken with g and F at the old parameters.

        Returns:
            `audit/predicted_gain`: g . step, the first-order change of the surrogate.
            `audit/predicted_kl`: 1/2 step^T F step, the second-order KL, on every n-th transition
            (sequence, of a recurrent policy) so that about 250 are taken.
            `audit/step_gradient_cosine`: angle between the step and the gradient.
            `audit/gradient_split_cosine`: angle between the gradients of the batch's two halves,
            which are different environments; near 0 the gradient is noise.
            `audit/gradient_snr`: squared gradient over its squared standard error, by the same
            halves.

        Source: lecture, "NPG derivation" (both expansions).
        """
        new = flatten(self.parameters).detach()
        step = new - self.theta
        first, second = self.gradients
        g = self.weight * first + (1 - self.weight) * second
        squared_error = (first - second).square().sum() / 4
        return {
            "audit/predicted_gain": float(g.dot(step)),
            "audit/predicted_kl": self._quadratic_kl(step, new),
            "audit/step_gradient_cosine": float(cosine_similarity(step, g, dim=0)),
            "audit/gradient_split_cosine": float(cosine_similarity(first, second, dim=0)),
            "audit/gradient_snr": float(first.dot(second) / squared_error),
        }

    def _differentiate(self, half: Batch) -> tuple[Tensor, Tensor]:
        """Distribution parameters, and E[grad ln pi(a | s) A] or 0 where there is no transition."""
        params = []

        def objective(batch: Batch) -> Tensor:
            new = self.policy.dist_params(batch.obs)
            params.append(new.detach())
            return self.policy.dist(new).log_prob(batch.action) * batch.advantage

        if half.count == 0:
            return self.policy.dist_params(half.obs).detach(), torch.zeros_like(self.theta)
        g = half.gradient(objective, self.parameters)
        return torch.cat(params), g

    def _quadratic_kl(self, step: Tensor, new: Tensor) -> float:
        """1/2 E[(J step)^T M (J step)]; J step takes two forward passes and no graph."""
        some = self.batch.every(max(1, self.batch.count // CURVATURE_SAMPLES))
        ends = []
        for width in (WIDTH, -WIDTH):
            assign(self.parameters, self.theta + width * step)
            with torch.no_grad():
                ends.append(self.policy.dist_params(some.obs))
        assign(self.parameters, new)
        J_step = (ends[0] - ends[1]) / (2 * WIDTH)
        params = (ends[0] + ends[1]) / 2  # those at theta, but for O(WIDTH^2)
        M_J_step = exact_metric(self.policy, params, some)(J_step)
        return 0.5 * float(some.expect((J_step * M_J_step).sum(-1)))
