"""Checks of distributions: what they sample against the density that they state.

The policy is one with parameters far from the start, at which many distributions are uniform. The
score s = d ln p(a) / d params of sampled actions has the mean 0, whatever the distribution, and
E[s s^T] is the Hessian of the KL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from rlopt.box import SquashedGaussian
from rlopt.distributions import Product
from rlopt.rows import Row, at_most
from rlopt.verify.audit import Audit
from rlopt.verify.chance import excess, excess_of
from rlopt.verify.dense import kl_hessian, kl_hessian_diagonal
from rlopt.verify.draws import scores

MOST_NATS = 20.0  # ln p of an action that is too rare to be seen, at the least


def above_median(params: Tensor) -> Tensor:
    """1 where a parameter [B, k] is above its median over the rows, else -1."""
    return torch.where(params > params.median(0).values, 1.0, -1.0)


def sampling(audit: Audit) -> list[Row]:
    """Samples have the distribution that `log_prob` states, each figure at a level of 1e-9.

    The mean of the score over all rows, over each row, and with the sign of the parameters (a
    temperature leaves the first at 0); its second moments (dependent parts of an action); and that
    a draw says nothing of the next one, the next row's or the next call's.
    """
    x = audit.samples
    s = x.score
    M = x.repeats * kl_hessian(audit.policy, x.params)
    variance = M.diagonal(dim1=1, dim2=2)
    return [
        at_most("mean of the score: over its bound",
                mean_excess(s, above_median(x.params).repeat_interleave(x.repeats, 0),
                            variance.sum(0)), 1.0),
        at_most("of the scores of each state: over bound",
                excess_of(by_row(s, x.repeats), variance=variance), 1.0),
        at_most("E[s s^T] - Hessian of the KL: over bound", moment_excess(s, M.sum(0)), 1.0),
        at_most("products of two draws: over their bound", lag_excess(s, M, x.repeats), 1.0),
    ]  # fmt: skip


def mean_excess(s: Tensor, sign: Tensor, variance: Tensor) -> Tensor:
    """Of the mean of scores [N, k], as they are and with signs."""
    tests = 2 * s.shape[1]
    return torch.stack([excess_of(x, tests, variance) for x in (s, sign * s)]).max()


def moment_excess(s: Tensor, M: Tensor) -> Tensor:
    """Of the second moments of scores [N, k], that should add up to M [k, k]."""
    size, largest = M.diagonal().clamp(min=0).sqrt(), s.abs().amax(0)
    squares = torch.maximum(s.square().T @ s.square(), size[:, None] * size)
    return excess(s.T @ s - M, squares, largest[:, None] * largest)


def lag_excess(s: Tensor, M: Tensor, repeats: int) -> Tensor:
    """Of the products of scores with those of the next draw, call and state."""
    lags = (1, repeats // 2, repeats)
    variances = [(M * M.roll(-shift, 0)).sum() / repeats for shift in (0, 0, 1)]
    products = [(s[lag:] * s[:-lag]).sum(1) for lag in lags]
    pairs = zip(products, variances, strict=True)
    return torch.stack([excess_of(p, len(lags), v) for p, v in pairs]).max()


def sampled_actions(audit: Audit) -> list[Row]:
    """The rollout's actions have the distribution that the update takes them for.

    As `sampling`, but of the trainer's own actions: how they are chosen from the distribution, or
    changed behind it. Of a thousand transitions 15% too much in a standard deviation shows.
    """
    batch = audit.full_batch
    with torch.no_grad():
        params = audit.policy.dist_params(batch.obs).clone()
    s, _ = scores(audit.policy, params, batch.action)
    variance = kl_hessian_diagonal(audit.policy, params).sum(0)
    excess = mean_excess(s, above_median(params), variance)
    return [at_most("mean of the score: over its bound", excess, 1.0)]


def entropy_and_kl(audit: Audit) -> list[Row]:
    """E[-ln p(a)] is the entropy that is stated, E[ln p(a) / q(a)] the KL, at a level of 1e-9.

    Of one category, sums over all actions (`measured kl`) are exact; this holds for every
    distribution.
    """
    x, policy = audit.samples, audit.policy
    with torch.no_grad():
        p, q = policy.dist(x.params), policy.dist(x.others)
        entropy, kl = p.entropy(), kl_divergence(p, q)
        other = policy.dist(x.others.repeat_interleave(x.repeats, 0)).log_prob(x.action)
        surprise = -x.log_prob - entropy.repeat_interleave(x.repeats, 0)
        ratio = x.log_prob - other - kl.repeat_interleave(x.repeats, 0)
    return [
        at_most("entropy + E[ln p]: over its bound", excess_of(surprise, largest=MOST_NATS), 1.0),
        at_most("KL - E[ln p - ln q]: over its bound", excess_of(ratio, largest=MOST_NATS), 1.0),
    ]


def most_probable_action(audit: Audit) -> list[Row]:
    """The mode, which evaluation plays, has the highest density of all.

    No entry of it can be exchanged for a sampled one and become more probable. Of a squashed
    Gaussian it is the median: as many samples are below as above.
    """
    x = audit.samples
    with torch.no_grad():
        return list(mode_rows(audit.policy.dist(x.params), by_row(x.action, x.repeats)))


def by_row(action: Tensor, repeats: int) -> Tensor:
    """Actions [B n, *] as [n, B, *]."""
    return action.view(-1, repeats, *action.shape[1:]).transpose(0, 1)


def mode_rows(dist: Distribution, action: Tensor) -> Iterator[Row]:
    """Rows for actions [n, B, *] of distributions [B]."""
    if isinstance(dist, Product):
        columns = action.split(dist.columns, dim=-1)
        for part, own in zip(dist.parts, columns, strict=True):
            yield from mode_rows(part, own.squeeze(-1) if part.event_shape == () else own)
    elif isinstance(dist, SquashedGaussian):
        side = torch.where(action < dist.mode, 1.0, -1.0)
        yield at_most("median: samples on one side, over bound", excess_of(side), 1.0)
    else:
        yield at_most("gain of ln p by another action", best_gain(dist, action), 1e-9)


def best_gain(dist: Distribution, action: Tensor) -> float:
    """The most that ln p of a mode rises by one entry of some sampled action [n, B, *]."""
    mode = dist.mode
    top, best = dist.log_prob(mode), -math.inf
    entries = [None] if dist.event_shape == () else list(range(mode.shape[-1]))
    for i in entries:
        trial = action if i is None else mode.expand_as(action).clone()
        if i is not None:
            trial[..., i] = action[..., i]
        best = max(best, float((dist.log_prob(trial) - top).max()))
    return max(best, 0.0)
