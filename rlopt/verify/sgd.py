"""Checks of the rules of minibatch steps: their objective past the first one, and what adapts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlopt.algos.pg import PG
from rlopt.algos.ppo import PPO
from rlopt.algos.ppo_clip import PPOClip
from rlopt.distributions import sum_of
from rlopt.linalg import assign
from rlopt.rows import Row, at_most, not_applicable
from rlopt.types import RecurrentPolicy
from rlopt.verify.audit import ITERATIVE, ROUNDING, WIDTHS, Audit, relative
from rlopt.verify.rule import plain
from rlopt.verify.watch import replaced

OTHER_RULE = "the rule has no optimiser"
EDGE = 1e-3  # how near to its thresholds the adaptation of the penalty is tried, relative


@contextmanager
def dictated(audit: Audit, moves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The optimiser's n-th step goes to theta + moves[n], the last one again and again.

    Yields the list of the gradients [P] that it is given, as ascent directions.
    """
    assert isinstance(audit.rule, PG | PPO | PPOClip)
    gradients: list[Tensor] = []

    def step(*args: object) -> None:
        gradients.append(-torch.cat([p.grad.reshape(-1) for p in audit.parameters]))
        move = moves[min(len(gradients), len(moves)) - 1]
        assign(audit.parameters, audit.theta + move)

    with replaced(audit.rule.optimizer, step=step):
        yield gradients


def objective_after_a_step(audit: Audit) -> list[Row]:
    """The gradient of the second epoch, begun at theta + d, against central differences there.

    Of the whole documented objective: E[r A] - penalty E[KL], or the clipped one with its entropy
    bonus, with the advantages standardised as configured. A maximal norm shortens the gradient and
    does not turn it.
    """
    rule = audit.rule
    if not isinstance(rule, PPO | PPOClip):
        return [not_applicable(OTHER_RULE)]
    delta, settings = 0.5 * audit.away, every_term(rule) | {"max_grad_norm": None}
    g = second_gradient(audit, delta, settings)
    V = audit.dense.directions(8)
    A = audit.batch.advantage
    if settings.get("standardize_minibatch"):
        A = (A - A.mean()) / (A.std() + 1e-8)
    error = min(relative(V @ g, slopes(audit, delta, settings, A, width)) for width in WIDTHS)
    norm = float(g.norm())
    short = second_gradient(audit, delta, settings | {"max_grad_norm": norm / 2})
    long = second_gradient(audit, delta, settings | {"max_grad_norm": norm * 2})
    return [
        at_most("|g.v - finite difference|, relative", error, ITERATIVE),
        # torch divides by the norm plus 1e-6
        at_most("shortened to half its norm: error, relative", relative(2 * short, g), 1e-3),
        at_most("at twice its norm: change, relative", relative(long, g), ROUNDING),
    ]


def every_term(rule: PPO | PPOClip) -> dict[str, Any]:
    """Settings in which each term of the objective counts."""
    if isinstance(rule, PPO):
        return {"target_kl": None, "penalty": 1.7}
    names = {"entropy_bonus": rule.entropy_bonus or 0.03, "clip_range": rule.clip_range}
    return {"target_kl": None, "standardize_minibatch": rule.standardize_minibatch, **names}


def second_gradient(audit: Audit, delta: Tensor, settings: dict[str, Any]) -> Tensor:
    """What the rule gives its optimiser in the second of two epochs on the whole batch."""
    state = audit.first_rule_state
    if "penalty" in settings:  # a state of its own, which a step begins with
        state = {**state, "penalty": settings["penalty"]}
    others = {k: x for k, x in settings.items() if k != "penalty"}
    size = len(audit.batch)
    with replaced(audit, first_rule_state=state), dictated(audit, [delta]) as gradients:
        audit.step(epochs=2, minibatch_size=size, **others)
    return gradients[1]


def slopes(
    audit: Audit, delta: Tensor, settings: dict[str, Any], A: Tensor, width: float
) -> Tensor:
    """Central differences of the rule's objective at theta + delta, along eight directions."""

    def objective(d: Tensor) -> float:
        r = audit.log_ratio(d).exp()
        if isinstance(audit.rule, PPO):
            sampled = audit.rule.kl == "sampled"
            kl = -float(audit.mean(audit.log_ratio(d))) if sampled else audit.kl(d)
            return float(audit.mean(r * A)) - settings["penalty"] * kl
        eps = settings["clip_range"]
        surrogate = torch.where(A > 0, r.clamp(max=1 + eps), r.clamp(min=1 - eps)) * A
        entropy = audit.at(d)[1].entropy()
        return float(audit.mean(surrogate + settings["entropy_bonus"] * entropy))

    V = audit.dense.directions(8)
    changes = [objective(delta + width * v) - objective(delta - width * v) for v in V]
    return V.new_tensor(changes) / (2 * width)


def minibatch_steps(audit: Audit) -> list[Row]:
    """How many steps an update takes, and that those of an epoch see each transition once.

    Without moving, the minibatches' gradients add up to that of the whole batch.
    """
    rule = audit.rule
    if isinstance(rule, PG):
        number = len(unmoved(audit, {}))
        return [at_most("steps of an update: |number - 1|", abs(number - 1), 0.0)]
    if not isinstance(rule, PPO | PPOClip):
        return [not_applicable(OTHER_RULE)]
    batch = audit.batch
    size = max(1, len(batch) // 5)
    parts = math.ceil(len(batch) / size)
    if isinstance(audit.policy, RecurrentPolicy):
        parts = min(parts, batch.num_units)
    settings = plain(audit, minibatch_size=size, epochs=3)
    rows = [at_most("steps of 3 epochs: |number - due|",
                    abs(len(unmoved(audit, settings)) - 3 * parts), 0.0)]  # fmt: skip
    if isinstance(rule, PPOClip):
        with dictated(audit, [0.3 * audit.away]) as gradients:
            audit.step(**settings | {"target_kl": 1e-12})
        rows.append(at_most("after a KL above target_kl: excess steps",
                            abs(len(gradients) - parts), 0.0))  # fmt: skip
        with dictated(audit, [0.3 * audit.away]) as gradients:
            audit.step(**settings | {"target_kl": 1e9})
        rows.append(at_most("below target_kl: steps missing",
                            abs(len(gradients) - 3 * parts), 0.0))  # fmt: skip
    if isinstance(audit.policy, RecurrentPolicy):
        return [*rows, not_applicable("sequences make no even minibatches")]
    first = unmoved(audit, settings)[:parts]
    sizes = [len(part) for part in torch.arange(len(batch)).tensor_split(parts)]
    total = sum_of(n * g for n, g in zip(sizes, first, strict=True)) / len(batch)
    whole = unmoved(audit, settings | {"minibatch_size": len(batch)})[0]
    return [*rows, at_most("sum of an epoch's gradients: error",
                           relative(total, whole), 1e-9)]  # fmt: skip


def unmoved(audit: Audit, settings: dict[str, Any]) -> list[Tensor]:
    """The gradients of all steps of an update in which none moves."""
    with dictated(audit, [torch.zeros_like(audit.theta)]) as gradients:
        audit.step(**settings)
    return gradients


def adapted_penalty(audit: Audit) -> list[Row]:
    """The penalty is doubled above 1.5 target_kl and halved below target_kl / 1.5, once an update.

    Tried a thousandth above and below each threshold, over several epochs of minibatches, and at
    the ends of `penalty_range`. Source: Schulman et al. 2017, section 4.
    """
    rule = audit.rule
    if not isinstance(rule, PPO):
        return [not_applicable("the rule adapts no penalty")]
    if rule.target_kl is None:
        return [not_applicable("algo.target_kl=null: the penalty is fixed")]
    low, high = rule.penalty_range
    inside = (low * high) ** 0.5
    due = {1.5 * (1 + EDGE): 2.0, 1.5 * (1 - EDGE): 1.0, (1 + EDGE) / 1.5: 1.0,
           (1 - EDGE) / 1.5: 0.5}  # fmt: skip
    v = audit.away
    kl = {share: audit.kl(share * v) for share in (0.05, 0.1, 0.2)}
    wrong, outside = 0.0, 0.0
    wide = (inside / 10, inside * 10)
    for length, moved in kl.items():
        for share, factor in due.items():
            after = penalty_after(audit, length, moved / share, inside, wide)
            wrong = max(wrong, abs(after / (inside * factor) - 1))
        for start, target, end in ((high, moved / 3, high), (low, moved * 3, low)):
            after = penalty_after(audit, length, target, start, (low, high))
            outside = max(outside, abs(after / end - 1))
    return [
        at_most("|penalty / due - 1| near the thresholds", wrong, ROUNDING),
        at_most("the same at the ends of its range", outside, ROUNDING),
    ]


def penalty_after(
    audit: Audit, length: float, target: float, penalty: float, range_: tuple[float, float]
) -> float:
    """The penalty after an update that ends at theta + length * away."""
    rule = audit.rule
    assert isinstance(rule, PPO)
    state = {**audit.first_rule_state, "penalty": penalty}
    size = max(1, len(audit.batch) // 3)
    settings: dict[str, Any] = {"target_kl": target, "penalty_range": range_}
    with replaced(audit, first_rule_state=state), dictated(audit, [length * audit.away]):
        audit.step(epochs=2, minibatch_size=size, **settings)
    return rule.state_dict()["penalty"]


def reported_ratios(audit: Audit) -> list[Row]:
    """The reported clip fraction and KL of two epochs: the first moves nothing, the second does."""
    rule = audit.rule
    if not isinstance(rule, PPOClip):
        return [not_applicable("the rule reports no clipped ratios")]
    delta = 0.5 * audit.away
    log_ratio = audit.log_ratio(delta)
    ratio = log_ratio.exp()
    with dictated(audit, [delta]):
        _, metrics = audit.step(**plain(audit, epochs=2, minibatch_size=len(audit.batch)))
    clipped = float(((ratio - 1).abs() > rule.clip_range).to(ratio).mean()) / 2
    kl = float((ratio - 1 - log_ratio).mean())
    return [
        at_most("clip fraction: error", abs(metrics["algo/clip_fraction"] - clipped), ROUNDING),
        at_most("approximate KL: relative error", abs(metrics["algo/approx_kl"] / kl - 1),
                ITERATIVE),
    ]  # fmt: skip
