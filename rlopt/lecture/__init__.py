"""The lecture's statements, each measured on the package's own code against an independent oracle.

A statement is a function of a seed, from which all that it draws is drawn: policies, MDPs, steps,
trajectories. It returns the rows of the table and what its figure shows, and its docstring begins
with its slide's title. A row holds for every seed; where it tests sampled numbers, it fails with at
most the probability that the statement names. `scripts/lecture.py` runs them all.

The oracles are enumeration of all trajectories, automatic differentiation through exact values, and
scipy's solvers. What is judged are the update rules, Fisher operators, advantage estimators and
rollouts; `exact_rollout` turns the expectations that these estimate into plain averages.
"""

from __future__ import annotations

from collections.abc import Callable

from rlopt.lecture.divergence import (
    fisher_is_a_sum_over_steps,
    kl_gradient_is_zero,
    kl_hessian_is_fisher,
    kl_is_a_divergence,
    taylor_expansion_of_the_constraint,
    trajectory_kl_sums_over_steps,
)
from rlopt.lecture.estimates import (
    expectation_is_the_advantage,
    importance_sampling,
    unbiased_for_any_baseline,
    variance_without_and_with_baseline,
)
from rlopt.lecture.iteration import degradation_bound, performance_difference_lemma
from rlopt.lecture.results import Result
from rlopt.lecture.rules import (
    closed_form_update,
    estimated_trpo,
    first_order_expansion,
    npg_is_trpo_to_leading_order,
    proximal_policy_optimization,
    sample_based_npg,
)
from rlopt.lecture.two_actions import two_action_example

STATEMENTS: list[Callable[[int], Result]] = [
    expectation_is_the_advantage,
    unbiased_for_any_baseline,
    variance_without_and_with_baseline,
    performance_difference_lemma,
    degradation_bound,
    kl_is_a_divergence,
    estimated_trpo,
    npg_is_trpo_to_leading_order,
    fisher_is_a_sum_over_steps,
    closed_form_update,
    sample_based_npg,
    first_order_expansion,
    taylor_expansion_of_the_constraint,
    kl_gradient_is_zero,
    kl_hessian_is_fisher,
    trajectory_kl_sums_over_steps,
    proximal_policy_optimization,
    importance_sampling,
    two_action_example,
]


def slide(statement: Callable[[int], Result]) -> str:
    """The title of a statement's slide: what its docstring has in quotes first."""
    assert statement.__doc__ is not None
    return statement.__doc__.split('"')[1]
