"""The loop that ties the parts together; it knows their contracts and none of their insides."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt import checkpoint
from rlopt.advantages import standardize
from rlopt.audit import Audit
from rlopt.baselines import explained_variance
from rlopt.distributed import gather_list, rank, total_count, total_mean
from rlopt.evaluate import Evaluation
from rlopt.logger import Logger, NoLogger
from rlopt.types import Baseline, Batch, Policy, Rollout, UpdateRule

Metrics = dict[str, float]
EPISODE_WINDOW = 100


@dataclass
class Trainer:
    """Sample, estimate advantages, update the policy, fit the baseline; evaluate and save.

    Attributes:
        policy: the policy, moved by `rule` alone.
        baseline: fitted after the update, or before it on trajectories of its own.
        rule: the update rule.
        advantage: estimator with the contract of rlopt.advantages, its settings bound.
        rollout: sampler with `collect` and `collect_for_baseline`.
        evaluate: runs a given number of deterministic episodes of the policy.
        logger: takes one row of metrics an iteration.
        settings: the top-level settings `total_steps`, `average_over`, `chunk_size`,
            `standardize_advantage`, `stop_at_return`, `diagnostics`, `eval` and `checkpoint` of
            configs/base.yaml.
    """

    policy: Policy
    baseline: Baseline
    rule: UpdateRule
    advantage: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    rollout: Any
    evaluate: Callable[[int], Evaluation]
    logger: Logger | NoLogger
    settings: Any

    def train(self) -> Evaluation:
        """Run to `total_steps` or `stop_at_return`; returns the final policy's evaluation."""
        self.env_steps, self.best_return = 0, -np.inf
        self.recent_returns: deque[float] = deque(maxlen=EPISODE_WINDOW)
        settings = self.settings
        next_eval, next_save = settings.eval.every, settings.checkpoint.every
        done = False
        while not done:
            metrics = self.iterate()
            done = self.env_steps >= settings.total_steps
            if done or self.env_steps >= next_eval:
                next_eval += settings.eval.every
                evaluation = self.evaluate(
                    settings.eval.final_episodes if done else settings.eval.episodes
                )
                threshold = settings.stop_at_return
                if not done and threshold is not None and evaluation.mean >= threshold:
                    done = True
                    evaluation = self.evaluate(settings.eval.final_episodes)
                self._keep_if_best(evaluation)
                metrics |= evaluation_metrics(evaluation)
            self.logger.log(self.env_steps, metrics)
            if done or self.env_steps >= next_save:
                next_save += settings.checkpoint.every
                self.save("last")
        return evaluation

    def iterate(self) -> Metrics:
        """Sample, update the policy, fit the baseline, and only then move the normaliser."""
        start = time.perf_counter()
        steps_before = self.env_steps
        separate = self.rollout.collect_for_baseline(self.policy)
        if separate is not None:
            fit_metrics = self._fit_baseline(separate, self._estimate(separate)[1])
            self.env_steps += total_count(separate.num_steps)
        rollout = self.rollout.collect(self.policy)
        self.env_steps += total_count(rollout.num_steps)
        returns = gather_list(rollout.episode_returns)
        lengths = gather_list(rollout.episode_lengths)
        self.recent_returns += returns
        sampled = time.perf_counter()

        advantage, target = self._estimate(rollout)
        explained = explained_variance(rollout.flatten(target - advantage), rollout.flatten(target))
        batch = self._make_batch(rollout, advantage)
        update_metrics = self._update(batch)
        if separate is None:
            fit_metrics = self._fit_baseline(rollout, target)
        self.policy.update_statistics(batch.obs)

        seconds = time.perf_counter() - start
        return {
            "rollout/return_mean": float(np.mean(self.recent_returns or [np.nan])),
            "rollout/length_mean": float(np.mean(lengths or [np.nan])),
            "rollout/episodes": len(returns),
            **update_metrics,
            "baseline/explained_variance": explained,
            **fit_metrics,
            "time/steps_per_second": (self.env_steps - steps_before) / seconds,
            "time/rollout_share": (sampled - start) / seconds,
        }

    @torch.no_grad()
    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantages and the baseline's regression targets, both [T, N]."""
        value = self.baseline(rollout.obs, rollout.step)
        advantage = self.advantage(
            rollout.reward, value, rollout.terminated, rollout.truncated, rollout.valid
        )
        return advantage, advantage + value[:-1]

    def _fit_baseline(self, rollout: Rollout, target: Tensor) -> Metrics:
        obs, step = rollout.flatten(rollout.obs[:-1]), rollout.flatten(rollout.step[:-1])
        return self.baseline.fit(obs, step, rollout.flatten(target))

    def _make_batch(self, rollout: Rollout, advantage: Tensor) -> Batch:
        if self.settings.standardize_advantage:
            advantage = standardize(advantage, rollout.valid)
        horizon = 1.0
        if self.settings.average_over == "trajectories":
            horizon = total_count(rollout.num_steps) / total_count(rollout.num_trajectories)
        obs, action = rollout.flatten(rollout.obs[:-1]), rollout.flatten(rollout.action)
        advantage = rollout.flatten(advantage)
        return Batch(obs, action, advantage, horizon, self.settings.chunk_size)

    def _update(self, batch: Batch) -> Metrics:
        """One step of the rule; KL, entropy and surrogate are measured alike for every rule."""
        audit = Audit(self.policy, batch) if self.settings.diagnostics else None
        with torch.no_grad():
            old = audit.old if audit else self.policy(batch.obs)
        metrics = self.rule.step(batch)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"the update's {name} is {value}")
        if audit:
            metrics |= audit.metrics()
        with torch.no_grad():
            new = self.policy(batch.obs)
            ratio = (new.log_prob(batch.action) - old.log_prob(batch.action)).exp()
            gain = batch.expect((ratio - 1) * batch.advantage)
            kl = batch.expect(kl_divergence(old, new))
        if not torch.isfinite(kl) or not torch.isfinite(gain):
            raise FloatingPointError(f"the update left KL {kl:.3g} and surrogate gain {gain:.3g}")
        return {
            "policy/kl": float(kl),
            "policy/surrogate_gain": float(gain),
            "policy/entropy": float(total_mean(old.entropy())),
            "policy/entropy_after": float(total_mean(new.entropy())),
            **metrics,
        }

    def _keep_if_best(self, evaluation: Evaluation) -> None:
        if evaluation.mean > self.best_return:
            self.best_return = evaluation.mean
            self.save("best")

    def save(self, name: str) -> None:
        """Write checkpoints/<name>.pt into the run folder, from the first process."""
        if rank() > 0:
            return
        state = {
            "policy": self.policy.state_dict(),
            "baseline": self.baseline.state_dict(),
            "rule": self.rule.state_dict(),
            "env_steps": self.env_steps,
            "best_return": self.best_return,
            "random_state": torch.get_rng_state(),
        }
        checkpoint.save(Path(self.logger.folder) / "checkpoints" / f"{name}.pt", state)


def evaluation_metrics(evaluation: Evaluation) -> Metrics:
    """Tags of an evaluation."""
    return {
        "eval/return_mean": evaluation.mean,
        "eval/return_std": evaluation.std,
        "eval/length_mean": float(np.mean(evaluation.lengths)),
    }
