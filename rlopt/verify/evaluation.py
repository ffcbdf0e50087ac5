"""Checks of evaluation: what it plays, what it reports, and that training does not feel it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rlopt.evaluate import Evaluation
from rlopt.rows import Row, at_most, not_applicable
from rlopt.seeding import random_state
from rlopt.verify.audit import Audit
from rlopt.verify.transitions import UNKNOWN_SAMPLER, returns_of, within_quota, wrong_actions
from rlopt.verify.watch import (
    EnvLog,
    num_changed,
    recorded_modes,
    recorded_samples,
    tensors_of,
    watched_recorders,
)

EPISODES = 2


def evaluation(audit: Audit) -> list[Row]:
    """Evaluation changes no tensor, no random state, and steps no training environment."""
    training = audit.watch.env
    if training is None:
        return [not_applicable(UNKNOWN_SAMPLER)]
    before, randomness = tensors_of(audit.policy, audit.baseline), random_state()
    calls = training.num_calls
    with training.watching():
        audit.trainer.evaluate(EPISODES)
    now = random_state()
    differ = int((now["torch"] != randomness["torch"]).sum())
    differ += sum(now[source] != randomness[source] for source in ("numpy", "python"))
    changed = num_changed(before, tensors_of(audit.policy, audit.baseline))
    return [
        at_most("tensors that it changes", changed, 0.0),
        at_most("changes of the process' random state", differ, 0.0),
        at_most("calls of the training environments", training.num_calls - calls, 0.0),
    ]


def evaluated_episodes(audit: Audit) -> list[Row]:
    """Each action is the most probable one, each return the sum of an episode's rewards.

    The environments have seeds of their own, the same at each evaluation.
    """
    plays = [played(audit) for _ in "12"]
    if any(len(logs) != 1 for logs, *_ in plays):
        return [not_applicable("an evaluation of another kind")]
    [[log], modes, samples, result], [[again], *_] = plays
    done = np.stack([np.logical_or(step[4], step[5]) for step in log.steps])
    returns = returns_of(log, done, within_quota(done, EPISODES))
    rows = [
        at_most("actions - the most probable: largest error", wrong_actions(log, modes), 1e-5),
        at_most("random actions", len(samples), 0.0),
        at_most("|episodes - asked for|", abs(len(result.returns) - EPISODES), 0.0),
        at_most("seeds that training has, or that change", wrong_seeds(audit, log, again), 0.0),
    ]
    if len(returns) == len(result.returns):  # none was cut
        error = np.abs(np.subtract(returns, sorted(result.returns))).max(initial=0)
        size = max(1.0, np.abs(returns).max(initial=0))
        rows.append(at_most("returns: largest error, relative", error / size, 1e-9))
    return rows


def played(audit: Audit) -> tuple[list[EnvLog], Sequence[Tensor], Sequence[Tensor], Evaluation]:
    """An evaluation, watched: environments, modes, samples, and what it returned."""
    policy = audit.policy
    with (
        watched_recorders() as logs,
        recorded_modes(policy) as modes,
        recorded_samples(policy) as samples,
    ):
        result = audit.trainer.evaluate(EPISODES)
    return logs, modes, samples, result


def wrong_seeds(audit: Audit, log: EnvLog, again: EnvLog) -> int:
    """Resets without a seed, with one of training's, or with another one the second time."""
    training = audit.watch.env.seeds if audit.watch.env else []
    wrong = sum(seed is None or seed in training for seed in log.seeds)
    return wrong + (log.seeds != again.seeds)
