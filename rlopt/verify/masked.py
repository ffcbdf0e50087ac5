"""Checks of action masks: forbidden actions do not exist for the policy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt.action_spaces import categories
from rlopt.masks import KEY, mask_column, mask_size
from rlopt.rows import Row, at_most, not_applicable
from rlopt.verify.audit import ROUNDING, Audit
from rlopt.verify.transitions import UNKNOWN_SAMPLER

MASKS = 50  # steps whose masks are compared


def masked_actions(audit: Audit) -> list[Row]:
    """What a mask forbids has probability 0, is never sampled, and moves nothing.

    Entropy and KL are finite, and those of the renormalised allowed actions; no parameter of the
    distribution's parameters of a forbidden action has a gradient.
    """
    log = audit.watch.env
    if log is None:
        return [not_applicable(UNKNOWN_SAMPLER)]
    space = log.env.single_observation_space
    size = mask_size(space)
    if not size:
        return [not_applicable("the environment has no action mask")]
    end = space.shape[0]
    allowed = audit.batch.obs[:, end - size : end] != 0
    sizes = categories(log.env.single_action_space)
    x, policy = audit.samples, audit.policy
    with torch.no_grad():
        p, q = policy.dist(x.params), policy.dist(x.others)
        log_p, log_q = (entry_log_probs(d, sizes, allowed) for d in (p, q))
        entropy, kl = p.entropy(), kl_divergence(p, q)
    P = log_p.exp() * allowed
    due_entropy = -torch.where(allowed, P * log_p, 0.0).sum(1)
    due_kl = torch.where(allowed, P * (log_p - log_q), 0.0).sum(1)
    groups = torch.stack([part.sum(1) for part in P.split(sizes, dim=1)])
    every = audit.full_batch.obs[:, end - size : end] != 0
    forbidden = forbidden_among(audit.full_batch.action, every, sizes)
    forbidden += forbidden_among(x.action, allowed.repeat_interleave(x.repeats, 0), sizes)
    rows = [
        at_most("probability of a forbidden action", (log_p.exp() * ~allowed).max(), 0.0),
        at_most("|sum over the allowed ones - 1|", (groups - 1).abs().max(), ROUNDING),
        at_most("forbidden actions that are sampled", forbidden, 0.0),
        at_most("entropy: error", (entropy - due_entropy).abs().max(), 1e-9),
        at_most("KL: error", (kl - due_kl).abs().max(), 1e-9),
    ]
    if x.params.shape[1] == size:  # a parameter for each choice, as of all the package's policies
        leak = audit.dense.jacobian[~allowed].abs().max() if (~allowed).any() else 0.0
        rows.append(at_most("gradient by way of a forbidden action", leak, 0.0))
    return [*rows, at_most("entries that are not the environment's", wrong_masks(audit), 0.0)]


def wrong_masks(audit: Audit) -> int:
    """Entries of the masks in the last observations that differ from what the environment said.

    It says it in its observation's key, else in info; at an episode's end any mask will do.
    """
    inner, outer = audit.watch.unmasked, audit.watch.env
    if inner is None or outer is None:
        return 0
    wrong, space, size = 0, outer.env.space, outer.env.size
    for (_, _, flat, *_), (_, _, seen, _, terminated, truncated), told in list(
        zip(inner.steps, outer.steps, inner.masks, strict=True)
    )[-MASKS:]:
        if mask_column(space) is not None:
            told = np.stack([np.ravel(spaces.unflatten(space, row)[KEY]) for row in flat])
        going_on = ~np.logical_or(terminated, truncated)
        wrong += int(((np.asarray(told) != 0) != (seen[:, -size:] != 0))[going_on].sum())
    return wrong


def entry_log_probs(
    dist: torch.distributions.Distribution, sizes: list[int], allowed: Tensor
) -> Tensor:
    """Log-probability [B, sum of sizes] of every choice of every entry of the action.

    By varying one entry of an action whose others are allowed, and taking the total of the allowed
    choices of that entry for 1.
    """
    first = torch.stack([part.int().argmax(1) for part in allowed.split(sizes, dim=1)], dim=1)
    result = []
    for i, n in enumerate(sizes):
        trials = []
        for choice in range(n):
            action = first.clone()
            action[:, i] = choice
            trials.append(dist.log_prob(action if dist.event_shape else action[:, 0]))
        joint = torch.stack(trials, dim=1)
        others = dist.log_prob(first if dist.event_shape else first[:, 0])
        alone = joint - others[:, None]  # ln p(choice) - ln p(first choice)
        ok = allowed.split(sizes, dim=1)[i]
        result.append(alone - alone.masked_fill(~ok, -torch.inf).logsumexp(1, keepdim=True))
    return torch.cat(result, dim=1)


def forbidden_among(action: Tensor, allowed: Tensor, sizes: list[int]) -> int:
    """How many entries of actions [B] or [B, a] their masks [B, sum of sizes] forbid."""
    entries = action.reshape(len(action), -1).long()
    ends = np.cumsum([0, *sizes])
    parts = [allowed[:, a:b] for a, b in pairwise(ends)]
    return sum(int((~part.gather(1, entries[:, i : i + 1])).sum()) for i, part in enumerate(parts))
