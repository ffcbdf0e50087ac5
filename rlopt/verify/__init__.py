"""Checks of configured pieces on a real rollout of theirs, in float64: scripts/verify.py.

A check is a function of an `Audit` that returns rows; `CHECKS` lists them. Tolerances are rounding
(1e-16 in float64) with the margin that the figure's own amplification needs: 1e-10 for sums, 1e-6
for iterative solutions and finite differences, percents where a limit is approached.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rlopt.rows import Row, guarded
from rlopt.trainer import Trainer
from rlopt.verify.audit import Audit
from rlopt.verify.clip import clipped_ratio
from rlopt.verify.curvature import conjugate_gradient, fisher_is_hessian_of_kl, fisher_matrix
from rlopt.verify.effects import (
    actor_parameters,
    evaluation,
    measured_kl,
    moved_by_the_step,
    statistics,
)
from rlopt.verify.given import (
    advantages,
    advantages_at_ends,
    batch_of_the_update,
    log_prob_ratio_is_one,
)
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

CHECKS: list[Callable[[Audit], list[Row]]] = [
    log_prob_ratio_is_one,
    advantages,
    advantages_at_ends,
    batch_of_the_update,
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
    penalty,
    clipped_ratio,
    actor_parameters,
    moved_by_the_step,
    measured_kl,
    statistics,
    evaluation,
]


def verify(trainer: Trainer) -> list[tuple[str, Row]]:
    """The name of its check with every row; a check that raises is a FAIL."""
    audits: list[Audit] = []

    def iterate() -> list[Row]:
        audits.append(Audit(trainer))
        return []

    rows = [("an iteration of training", row) for row in guarded(iterate)]
    for audit in audits:
        for check in CHECKS:
            name = check.__name__.replace("_", " ")
            rows += [(name, row) for row in guarded(partial(check, audit))]
    return rows
