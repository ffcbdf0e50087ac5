"""Checks of what a run keeps beside parameters: statistics, memory, scheduled settings."""

from __future__ import annotations

import numpy as np
import torch

from rlopt.config import to_dict
from rlopt.logger import flat
from rlopt.masks import mask_size, unmasked
from rlopt.policies import NetworkPolicy
from rlopt.recurrent import GRUPolicy
from rlopt.rows import Row, at_most, not_applicable
from rlopt.types import RecurrentPolicy
from rlopt.verify.audit import ROUNDING, Audit
from rlopt.verify.fit import statistics_rows
from rlopt.verify.transitions import UNKNOWN_SAMPLER
from rlopt.verify.watch import held


def normaliser(audit: Audit) -> list[Row]:
    """The policy's normaliser after two updates, against NumPy on the observations of both."""
    policy = audit.policy
    if not isinstance(policy, NetworkPolicy | GRUPolicy):
        return [not_applicable("a policy of another kind")]
    if policy.normalizer is None:
        return [not_applicable("policy.normalize_obs=false")]
    log = audit.watch.env
    if log is None:
        return [not_applicable(UNKNOWN_SAMPLER)]
    space = log.env.single_observation_space
    width = space.shape[0] - mask_size(space)
    assert unmasked(space).shape == (width,)
    seen = [batch.obs[:, :width].double().cpu().numpy() for batch in audit.watch.batches]
    with audit.after_the_iteration():
        return statistics_rows(policy.normalizer, np.concatenate(seen))


def memory(audit: Audit) -> list[Row]:
    """A recurrent policy's state is 0 where an episode starts, and else what acting left.

    The batch's distributions, made sequence by sequence, are those of acting step by step.
    """
    policy, rollout = audit.policy, audit.rollout
    if not isinstance(policy, RecurrentPolicy):
        return [not_applicable("the policy has no memory")]
    obs, state = rollout.obs.split([rollout.obs.shape[-1] - policy.state_size,
                                    policy.state_size], dim=-1)  # fmt: skip
    begins = rollout.step[:-1] == 0
    at_start = state[:-1][begins & rollout.valid].abs()
    wrong, params = 0.0, []
    memory_ = state[0].clone()
    with torch.no_grad():
        for t in range(len(rollout.valid)):
            memory_ = torch.where((rollout.step[t] == 0)[:, None], 0.0, memory_)
            differs = (memory_ - state[t]).abs()[rollout.valid[t]]
            wrong = max(wrong, float(differs.max()) if len(differs) else 0.0)
            dist, memory_ = policy.advance(obs[t], memory_)
            params.append(dist.log_prob(rollout.action[t]))
        batch = audit.full_batch
        own = rollout.flatten(torch.stack(params))
        error = (policy(batch.obs).log_prob(batch.action) - own).abs().max()
    return [
        at_most("state at an episode's start", at_start.max() if len(at_start) else 0.0, 0.0),
        at_most("states of the rollout: largest error", wrong, 1e-9),
        at_most("ln p of the batch - of acting", error, 1e-9),
    ]


def schedules(audit: Audit) -> list[Row]:
    """Each scheduled number goes linearly from the config's value to its end, where its part is.

    In both iterations it was that of the share of the steps that were done; then a quarter, half
    and all of them are tried.
    """
    trainer, settings = audit.trainer, audit.trainer.settings
    ends = flat(to_dict(settings.schedule))
    if not ends:
        return [not_applicable("nothing is scheduled")]
    starts = flat(to_dict(settings))
    due = {key: (float(starts[key]), float(end)) for key, end in ends.items()}
    missing = len(due.keys() ^ trainer.schedules.keys())
    both = [key for key in due if key in trainer.schedules]

    def value(key: str, progress: float) -> float:
        start, end = due[key]
        return start + progress * (end - start)

    def error(key: str, found: float, progress: float) -> float:
        size = max(abs(x) for x in due[key])
        return abs(found - value(key, progress)) / size

    trained = [
        error(key, found[key], done) for done, found in audit.watch.scheduled for key in both
    ]
    tried = []
    for key in both:
        schedule = trainer.schedules[key]
        for done in (0.0, 0.25, 0.5, 1.0):
            schedule.apply(done)
            tried.append(error(key, held(schedule), done))
        schedule.apply(audit.watch.scheduled[-1][0])
    return [
        at_most("scheduled numbers missing or too many", missing, 0.0),
        at_most("in training: largest error, relative", max(trained, default=0.0), ROUNDING),
        at_most("from start to end: largest error, relative", max(tried, default=0.0), ROUNDING),
    ]
