"""Checks of the update rule: direction, length and limits of its step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlopt.algos.npg import NPG
from rlopt.algos.pg import PG
from rlopt.algos.ppo import PPO
from rlopt.algos.ppo_clip import PPOClip
from rlopt.algos.trpo import TRPO
from rlopt.rows import Row, at_most, not_applicable
from rlopt.types import Batch
from rlopt.verify.audit import ITERATIVE, ROUNDING, WIDTHS, Audit, relative
from rlopt.verify.watch import replaced

FIRST_ORDER = (PG, PPO, PPOClip)  # rules that leave their gradient to an optimiser


def sampled_penalty(audit: Audit) -> bool:
    """Whether the rule's penalty is the sampled KL, whose gradient is not 0 at the old policy."""
    return isinstance(audit.rule, PPO) and audit.rule.kl == "sampled"


def gradient_of_the_rule(audit: Audit) -> list[Row]:
    """The gradient that the rule follows against central differences of E[pi / pi_k A].

    A rule of first order leaves it in `.grad`, taken here at learning rate 0; a natural gradient
    turns into it as the damping outgrows F, up to its length.
    """
    name, descends = "|g.v - finite difference|, relative", isinstance(audit.rule, FIRST_ORDER)
    if descends:
        if sampled_penalty(audit):
            return [not_applicable("the sampled KL has a gradient of its own")]
        g = gradient_left_by_optimizer(audit, audit.batch)
    elif isinstance(audit.rule, NPG | TRPO):
        longer: dict[str, Any] = {} if audit.radius else {"step_size": 1e8}
        g, _ = audit.step(damping=1e9, **longer)
        name = "the same, both normalised"
    else:
        return [not_applicable("a rule of another kind")]
    V = audit.dense.directions(8)
    slope = V @ g
    errors = []
    for e in WIDTHS:
        changes = [audit.gain(e * v) - audit.gain(-e * v) for v in V]
        difference = slope.new_tensor(changes) / (2 * e)
        if not descends:
            slope, difference = slope / slope.norm(), difference / difference.norm()
        errors.append(relative(slope, difference))
    return [at_most(name, min(errors), ITERATIVE)]


def gradient_left_by_optimizer(audit: Audit, batch: Batch) -> Tensor:
    """Minus what a step on the whole batch, without moving, leaves in `.grad`, [P]."""

    def step_without_moving(*args: object) -> None:
        pass

    assert isinstance(audit.rule, FIRST_ORDER)
    with replaced(audit.rule.optimizer, step=step_without_moving):
        audit.step(batch, **plain(audit, minibatch_size=len(batch)))
    return -torch.cat([p.grad.reshape(-1) for p in audit.parameters])


def plain(audit: Audit, **settings: Any) -> dict[str, Any]:
    """Settings of a rule with an optimiser that leave of its objective the surrogate, one epoch."""
    simple: dict[str, Any] = {"epochs": 1, "entropy_bonus": 0.0, "standardize_minibatch": False}
    simple |= {"max_grad_norm": None, "target_kl": None, **settings}
    return {name: x for name, x in simple.items() if hasattr(audit.rule, name)}


def natural_direction(audit: Audit) -> list[Row]:
    """The rule's step is along (F + damping I)^-1 g, solved densely from independent F and g."""
    if not isinstance(audit.rule, NPG | TRPO):
        return [not_applicable("the rule is no natural gradient")]
    step, _ = audit.step(**audit.solved)
    truth = audit.dense.solve(audit.dense.gradient, audit.damping)
    return [
        at_most("|step - dense solution|, normalised",
                relative(step / step.norm(), truth / truth.norm()), 1e-5)
    ]  # fmt: skip


def ascent(audit: Audit) -> list[Row]:
    """The step goes uphill."""
    step, _ = audit.step()
    cosine = step.dot(audit.dense.gradient) / (step.norm() * audit.dense.gradient.norm())
    return [Row("cosine of step and gradient", float(cosine), ITERATIVE, 1 + ROUNDING)]


def advantage_scale(audit: Audit) -> list[Row]:
    """A step whose length is set by a KL radius does not depend on the advantages' scale.

    Powers of two scale without rounding, which CG's unfinished iterations would amplify.
    """
    if audit.radius is None:
        return [not_applicable("the step's length is not set by a KL radius")]
    step, _ = audit.step()
    scaled = [audit.with_advantage(2.0**k * audit.batch.advantage) for k in (-20, 7)]
    change = max(relative(audit.step(batch)[0], step) for batch in scaled)
    return [at_most("step at A / 2^20, A x 2^7: relative change", change, ITERATIVE)]


def zero_advantages(audit: Audit) -> list[Row]:
    """Zero advantages leave the parameters as they are, and no 0/0.

    Of a rule with an optimiser it is the gradient that must vanish: Adam turns what rounding leaves
    of it into steps.
    """
    batch = audit.with_advantage(torch.zeros_like(audit.batch.advantage))
    if isinstance(audit.rule, NPG | TRPO):
        return [at_most("largest change of a parameter", audit.step(batch)[0].abs().max(), 0.0)]
    if not isinstance(audit.rule, FIRST_ORDER):
        return [not_applicable("a rule of another kind")]
    if sampled_penalty(audit):
        return [not_applicable("the sampled KL has a gradient of its own")]
    g = gradient_left_by_optimizer(audit, batch)
    return [at_most("largest entry of the gradient", g.abs().max(), ROUNDING)]


def predicted_and_measured(audit: Audit) -> list[Row]:
    """Along the step, KL -> 1/2 d.Fd and gain -> g.d, relative errors falling with its length.

    The errors are of first order in the length: a hundredth of it, at a ten-thousandth of the KL.
    What the rule reports of its own step is judged too.
    Source: lecture, "NPG: a leading order equivalent program".
    """
    if audit.setting("fisher") != "exact":
        return [not_applicable("the empirical Fisher matrix does not predict the KL")]
    step, metrics = audit.step(**audit.solved)
    quadratic = 0.5 * float(step.dot(audit.dense.fisher(step)))
    slope = float(step.dot(audit.dense.gradient))
    rows = []
    for name, key, truth in (
        ("KL", "algo/predicted_kl", quadratic), ("gain", "algo/predicted_gain", slope),
    ):  # fmt: skip
        if key in metrics and metrics.get("algo/line_search_scale") != 0:
            error = abs(metrics[key] / truth - 1)
            rows.append(at_most(f"reported prediction of the {name}", error, ITERATIVE))
    lengths = [(kl / quadratic) ** 0.5 for kl in (1e-6, 1e-7, 1e-8, 1e-9, 1e-10)]
    kl = [abs(audit.kl(s * step) / (s**2 * quadratic) - 1) for s in lengths]
    gain = [abs(audit.gain(s * step) / (s * slope) - 1) for s in lengths]
    for name, errors in (("KL / (1/2 d.Fd)", kl), ("gain / g.d", gain)):
        rows.append(at_most(f"|{name} - 1| at KL 1e-10", errors[-1], 0.02))
        if max(errors) > 1e-4:  # else it is exact, as for a linear Gaussian, or lost in rounding
            fall = max(errors[:3]) / errors[-1]
            rows.append(Row("its fall since KL 1e-6 .. 1e-8", fall, 5.0, math.inf))
    return rows


def radius_of_the_step(audit: Audit) -> list[Row]:
    """KL + damping / 2 |d|^2 -> max_kl as max_kl -> 0: damping counts in the radius.

    The length is that of the full step, which a line search may have cut.
    """
    if audit.radius is None:
        return [not_applicable("the step's length is not set by a KL radius")]
    if audit.setting("fisher") != "exact" or audit.setting("kl") == "sampled":
        return [not_applicable("the true KL is predicted by the exact Fisher matrix only")]
    rows = []
    damping = audit.solved.get("damping", 0.0)
    for max_kl in (1e-8, 1e-10):
        step, metrics = audit.step(max_kl=max_kl, **audit.solved)
        scale = metrics.get("algo/line_search_scale", 1.0) or math.nan
        share = (audit.kl(step) + damping / 2 * float(step.dot(step))) / max_kl / scale**2
        slack = 0.02 + 100 * max_kl**0.5  # the cubic term of the KL
        rows.append(Row(f"(KL + damping) / max_kl at {max_kl:g}", share, 1 - slack, 1 + slack))
    return rows


def searches(audit: Audit) -> Iterator[tuple[float, Tensor, Tensor, float]]:
    """Radius, advantages, step and scale of steps too long for their quadratic model."""
    A = audit.batch.advantage
    generator = torch.Generator().manual_seed(2)
    random = torch.randn(len(A), generator=generator).to(A)
    for advantage in (A, -A, random, random.exp() - 1):
        for max_kl in (0.01, 0.1, 0.5, 1.0, 2.0, 5.0):
            step, metrics = audit.step(audit.with_advantage(advantage), max_kl=max_kl)
            yield max_kl, advantage, step, metrics["algo/line_search_scale"]


def line_search(audit: Audit) -> list[Row]:
    """Every accepted step is within max_kl and gains, and the longer try before it was not.

    On radii up to 5 nats, where full steps break the limit. A step without a success leaves the
    parameters bitwise. Source: Schulman et al. 2015, appendix C.
    """
    if not isinstance(audit.rule, TRPO):
        return [not_applicable("the rule has no line search")]
    if audit.rule.kl == "sampled":
        return [not_applicable("the sampled KL may be anything")]
    ratio = audit.rule.backtrack_ratio
    cuts, outside, too_short, worst, restored = 0, 0, 0, 0.0, 0.0

    def acceptable(max_kl: float, advantage: Tensor, step: Tensor, slack: float) -> bool:
        gain = audit.gain(step, advantage)
        return audit.kl(step) <= max_kl * (1 + slack) and gain > -slack * abs(gain)

    for max_kl, advantage, step, scale in searches(audit):
        if scale == 0:
            worst = max(worst, float(step.abs().max()))
            continue
        outside += not acceptable(max_kl, advantage, step, 1e-9)
        if scale < 1:
            cuts += 1
            too_short += acceptable(max_kl, advantage, step / ratio, -1e-9)
            settings = {"max_kl": max_kl, "backtrack_tries": 1}
            failed, _ = audit.step(audit.with_advantage(advantage), **settings)
            restored = max(restored, float(failed.abs().max()))
    needed = Row("steps of 24 that had to be cut", cuts, 1, 24)
    if cuts == outside == 0:  # policies linear in fixed features are near their quadratic model
        needed = not_applicable("no full step up to 5 nats had to be cut")
    return [
        needed,
        at_most("steps beyond max_kl, or without gain", outside, 0.0),
        at_most("cut steps whose try before was good", too_short, 0.0),
        at_most("parameters after a failure: change", max(worst, restored), 0.0),
    ]


def penalty(audit: Audit) -> list[Row]:
    """A large penalty on the KL makes the step's KL smaller than none."""
    if not isinstance(audit.rule, PPO):
        return [not_applicable("the rule has no penalty on the KL")]
    if audit.rule.kl == "sampled":
        return [not_applicable("the sampled KL may be anything")]
    state = audit.first_rule_state
    kls = []
    for value in (0.0, 1000.0):
        with replaced(audit, first_rule_state={**state, "penalty": value}):
            kls.append(audit.kl(audit.step()[0]))
    return [Row("KL at penalty 1000 / at 0", kls[1] / kls[0], 0.0, 0.9)]
