"""Checks of what the update is given: the batch, its log-probabilities and its advantages."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlopt.rows import Row, at_most, not_applicable
from rlopt.verify.advantages import brute_advantage, stitched
from rlopt.verify.audit import ROUNDING, Audit


def log_prob_ratio_is_one(audit: Audit) -> list[Row]:
    """The ratio pi / pi_old is 1 on the rule's batch before its first step.

    pi_old is taken when each action is sampled, so that a normaliser that moves in between, or a
    batch that holds the clipped action in place of the sampled one, shows.
    """
    log_ratio = audit.update_log_prob - audit.sampled_log_prob
    return [at_most("largest |ratio - 1|", log_ratio.expm1().abs().max(), ROUNDING)]


def advantages(audit: Audit) -> list[Row]:
    """The estimator against sums of n-step returns, on the rollout and on stitched episodes."""
    estimate = audit.trainer.advantage
    function = getattr(estimate, "func", estimate)
    settings = getattr(estimate, "keywords", {})
    truth = brute_advantage(function.__name__, settings, audit.estimate_args)
    if truth is None:
        return [not_applicable(f"no brute force is known for {function.__name__}")]
    real = max(abs(float(audit.advantage[t, n]) - a) for (t, n), a in truth.items())
    args = stitched(audit.advantage)
    made = brute_advantage(function.__name__, settings, args)
    assert made is not None
    A = estimate(*args)
    error = max(abs(float(A[t, n]) - a) for (t, n), a in made.items())
    scale = max(1.0, *map(abs, truth.values()))
    return [
        at_most("rollout: largest error", real / scale, ROUNDING),
        at_most("stitched episodes: largest error", error, 1e-9),
    ]


def advantages_at_ends(audit: Audit) -> list[Row]:
    """What the last step of an episode may depend on: dA_t by dV(s_t), dV(s_t+1) and what follows.

    Source: `rlopt.advantages`, "one reading of an episode's end".
    """
    args = stitched(audit.advantage)
    reward, value, terminated, truncated, valid = args
    estimate, gamma = audit.trainer.advantage, audit.trainer.settings.gamma
    A = estimate(*args)

    def change(reward_by: Tensor, value_by: Tensor) -> Tensor:
        return estimate(reward + reward_by, value + value_by, terminated, truncated, valid) - A

    none_r, none_v = torch.zeros_like(reward), torch.zeros_like(value)
    ends = terminated | truncated
    own, successor, later_v, later_r = (x.clone() for x in (none_v, none_v, none_v, none_r))
    own[:-1][ends] = 1.0
    successor[1:][ends] = 1.0
    for n in range(ends.shape[1]):
        t = int(ends[:, n].nonzero()[0])
        later_v[t + 2 :, n], later_r[t + 1 :, n] = 1e6, 1e6
    before_end = ends.flip(0).cumsum(0).flip(0) > 0
    cut = truncated & ~terminated
    bootstraps = getattr(estimate, "keywords", {}).get("bootstrap", True)
    worth = gamma if bootstraps else 0.0
    leak = change(later_r * valid, later_v)[before_end].abs().max()
    return [
        at_most("leak from the next episode", leak, 0.0),
        at_most("terminated: |dA / dV(s')|", change(none_r, successor)[terminated].abs().max(),
                ROUNDING),
        at_most(f"truncated: |dA / dV(s') - {'gamma' if bootstraps else 0}|",
                (change(none_r, successor)[cut] - worth).abs().max(), ROUNDING),
        at_most("at an end: |dA / dV(s) + 1|", (change(none_r, own)[ends] + 1).abs().max(),
                ROUNDING),
    ]  # fmt: skip


def batch_of_the_update(audit: Audit) -> list[Row]:
    """The rule's advantages are the estimator's on valid rows, (A - mean) / std where configured.

    Standardised by NumPy for comparison. The row after a done only resets: it is no transition.
    """
    rollout = audit.rollout
    done = rollout.terminated | rollout.truncated
    resets = (done[:-1] & rollout.valid[:-1] & rollout.valid[1:]).sum()
    A = rollout.flatten(audit.advantage).cpu().numpy()
    if audit.trainer.settings.standardize_advantage:
        A = (A - A.mean()) / A.std() if A.std() > 1e-12 * np.abs(A).max() else 0 * A
    error = np.abs(audit.full_batch.advantage.cpu().numpy() - A).max()
    return [
        at_most("autoreset rows among its transitions", resets, 0.0),
        at_most("largest error of its advantages", error / max(1, np.abs(A).max()), 1e-9),
    ]
