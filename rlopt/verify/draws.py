"""Actions that are drawn from a policy far from its start, for the checks of its distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlopt.linalg import assign
from rlopt.types import Policy

if TYPE_CHECKING:
    from rlopt.verify.audit import Audit

NUM_SAMPLES = 2**17  # 1.6% too much in a standard deviation shows
MOST_NUMBERS = 2**23  # samples times parameters


@dataclass(frozen=True)
class Samples:
    """Actions of the distributions [B] that a policy away from its start has on `batch`.

    Attributes:
        params: [B, k] of these distributions, and `others` those of the policy as it is.
        repeats: n, of each row's actions.
        action: [B n, *], a row's one after the other.
        score: [B n, k].
        log_prob: [B n].
    """

    params: Tensor
    others: Tensor
    repeats: int
    action: Tensor
    score: Tensor
    log_prob: Tensor


def sample_away(audit: Audit) -> Samples:
    """Drawn as training does, without a sample shape, in two calls."""
    policy, obs = audit.policy, audit.batch.obs
    with torch.no_grad():
        others = policy.dist_params(obs).clone()
        assign(audit.parameters, audit.theta + audit.away)
        params = policy.dist_params(obs).clone()
        audit.restore()
    B, k = params.shape
    repeats = max(2, min(NUM_SAMPLES, MOST_NUMBERS // k) // B // 2 * 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        half = policy.dist(params.repeat_interleave(repeats // 2, 0))
        draws = [half.sample().view(B, repeats // 2, *half.event_shape) for _ in range(2)]
    action = torch.cat(draws, dim=1).flatten(0, 1)
    score, log_prob = scores(policy, params.repeat_interleave(repeats, 0), action)
    return Samples(params, others, repeats, action, score, log_prob)


def scores(policy: Policy, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """The score d ln p(a) / d params [N, k], and ln p(a) [N]."""
    leaf = params.detach().requires_grad_()
    log_prob = policy.dist(leaf).log_prob(action)
    return torch.autograd.grad(log_prob.sum(), leaf)[0], log_prob.detach()
