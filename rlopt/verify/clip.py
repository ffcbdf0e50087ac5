"""Checks of a clipped objective where it is clipped, away from the old policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlopt.algos.ppo_clip import PPOClip
from rlopt.linalg import assign
from rlopt.rows import Row, at_most, not_applicable
from rlopt.verify.audit import ITERATIVE, ROUNDING, WIDTHS, Audit, relative
from rlopt.verify.rule import plain
from rlopt.verify.watch import replaced

SMALL = 1e-3  # length of a step whose KL is quadratic


def clipped_ratio(audit: Audit) -> list[Row]:
    """Gradients at theta + delta, where about half of the ratios are beyond the range.

    Against central differences of E[min(r A, clip(r) A)]; with advantages that asked for each
    ratio's move it is 0 beyond the range, with the opposite ones that of E[r A]. So a long update
    stays nearer to pi_k than without a range. Source: Schulman et al. 2017, equation 7.
    """
    rule = audit.rule
    if not isinstance(rule, PPOClip):
        return [not_applicable("the rule clips no ratio")]
    v, eps, A = audit.dense.directions(1)[0], rule.clip_range, audit.batch.advantage
    kl = audit.kl(SMALL * v) / audit.batch.horizon
    spread = (2 * kl) ** 0.5 / SMALL  # of ln r, by a unit of length
    delta = 2 * eps / spread * v
    log_ratio = audit.log_ratio(delta)
    beyond = (log_ratio.exp() - 1).abs() > eps
    asked = log_ratio.sign()
    held = gradient_away(audit, delta, asked * beyond, eps)
    wrong, free = (gradient_away(audit, delta, -asked, clip_range) for clip_range in (eps, 1e9))
    long = plain(audit, minibatch_size=len(A), epochs=50)
    kls = [audit.kl(audit.step(clip_range=c, **long)[0]) for c in (1e-3, 1e9)]
    return [
        Row("share of ratios beyond the range", float(beyond.to(A).mean()), 0.05, 1.0),
        at_most("|g.v - finite difference|, relative", difference(audit, delta, eps), ITERATIVE),
        at_most("gradient of those that moved as asked", held.abs().max(), 0.0),
        at_most("of those that did not: part by the range", relative(wrong, free), ROUNDING),
        Row("KL of 50 steps, at range 0.001 / at none", kls[0] / kls[1], 0.0, 0.9),
    ]


def difference(audit: Audit, delta: Tensor, eps: float) -> float:
    """Relative error of the gradient at theta + delta along eight directions."""
    V, A = audit.dense.directions(8), audit.batch.advantage

    def objective(d: Tensor) -> Tensor:
        r = audit.log_ratio(d).exp()
        clipped = torch.where(A > 0, r.clamp(max=1 + eps), r.clamp(min=1 - eps))
        return audit.mean(clipped * A)

    slope = V @ gradient_away(audit, delta, A, eps)
    changes = (
        torch.stack([objective(delta + e * v) - objective(delta - e * v) for v in V]) / (2 * e)
        for e in WIDTHS
    )
    return min(relative(slope, change) for change in changes)


def gradient_away(audit: Audit, delta: Tensor, advantage: Tensor, eps: float) -> Tensor:
    """The gradient [P] that the rule follows in its second epoch, begun at theta + delta."""
    rule: Any = audit.rule

    def move(*args: object) -> None:
        assign(audit.parameters, audit.theta + delta)

    with replaced(rule.optimizer, step=move):
        settings = plain(audit, minibatch_size=len(advantage), epochs=2, clip_range=eps)
        audit.step(audit.with_advantage(advantage), **settings)
    return -torch.cat([p.grad.reshape(-1) for p in audit.parameters])
