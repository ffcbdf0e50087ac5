"""Checks of configured pieces on a real rollout of theirs, in float64: scripts/verify.py.

A check is a function of an `Audit` that returns rows; `CHECKS` lists them. Tolerances are rounding
(1e-16 in float64) with the margin that the figure's own amplification needs: 1e-10 for sums, 1e-6
for iterative solutions and finite differences, percents where a limit is approached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rlopt.rows import Row, guarded
from rlopt.trainer import Trainer
from rlopt.verify.audit import Audit
from rlopt.verify.clip import clipped_ratio
from rlopt.verify.curvature import conjugate_gradient, fisher_is_hessian_of_kl, fisher_matrix
from rlopt.verify.effects import actor_parameters, measured_kl, moved_by_the_step, statistics
from rlopt.verify.evaluation import evaluated_episodes, evaluation
from rlopt.verify.fit import baseline_fit, baseline_statistics, targets_of_the_fit
from rlopt.verify.given import (
    advantages,
    advantages_at_ends,
    batch_of_the_update,
    log_prob_ratio_is_one,
)
from rlopt.verify.masked import masked_actions
from rlopt.verify.reported import reported_episodes, reported_update
from rlopt.verify.rule import (
    advantage_scale,
    ascent,
    gradient_of_the_rule,
    line_search,
    natural_direction,
    penalty,
    predicted_and_measured,
    radius_of_the_step,
    zero_advantages,
)
from rlopt.verify.sampling import (
    entropy_and_kl,
    most_probable_action,
    sampled_actions,
    sampling,
)
from rlopt.verify.sgd import (
    adapted_penalty,
    minibatch_steps,
    objective_after_a_step,
    reported_ratios,
)
from rlopt.verify.state import memory, normaliser, schedules
from rlopt.verify.transitions import batch_rows, parts_of_a_batch, rollout_rows
from rlopt.verify.units import units_of_the_action

CHECKS: list[Callable[[Audit], list[Row]]] = [
    rollout_rows,
    sampled_actions,
    log_prob_ratio_is_one,
    memory,
    sampling,
    entropy_and_kl,
    most_probable_action,
    units_of_the_action,
    masked_actions,
    advantages,
    advantages_at_ends,
    batch_of_the_update,
    batch_rows,
    parts_of_a_batch,
    fisher_matrix,
    fisher_is_hessian_of_kl,
    conjugate_gradient,
    gradient_of_the_rule,
    natural_direction,
    ascent,
    advantage_scale,
    zero_advantages,
    predicted_and_measured,
    radius_of_the_step,
    line_search,
    minibatch_steps,
    objective_after_a_step,
    penalty,
    adapted_penalty,
    clipped_ratio,
    reported_ratios,
    targets_of_the_fit,
    baseline_fit,
    baseline_statistics,
    actor_parameters,
    moved_by_the_step,
    measured_kl,
    reported_update,
    reported_episodes,
    statistics,
    normaliser,
    schedules,
    evaluation,
    evaluated_episodes,
]


def verify(
    trainer: Trainer, checks: Sequence[Callable[[Audit], list[Row]]] = CHECKS
) -> list[tuple[str, Row]]:
    """The name of its check with every row; a check that raises is a FAIL."""
    audits: list[Audit] = []

    def iterate() -> list[Row]:
        audits.append(Audit(trainer))
        return []

    rows = [("an iteration of training", row) for row in guarded(iterate)]
    for audit in audits:
        for check in checks:
            rows += [(name_of(check), row) for row in guarded(partial(check, audit))]
    return rows


def name_of(check: Callable[[Audit], list[Row]]) -> str:
    """What the table calls a check."""
    return check.__name__.replace("_", " ")
