"""The loop that ties the parts together; it knows their contracts and none of their insides."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt import checkpoint
from rlopt.advantages import standardize
from rlopt.audit import Audit, copied, histograms
from rlopt.baselines import explained_variance
from rlopt.distributed import gather_list, rank, total_count, total_mean
from rlopt.evaluate import Evaluation
from rlopt.logger import Logger, NoLogger
from rlopt.schedule import Schedule
from rlopt.seeding import random_state, set_random_state
from rlopt.types import (
    Baseline,
    Batch,
    NonFiniteError,
    Policy,
    RecurrentPolicy,
    Rollout,
    UpdateRule,
    obs_for,
)

Metrics = dict[str, float]
EPISODE_WINDOW = 100
LEARNERS = ("policy", "baseline", "rule")
COUNTERS = (
    "env_steps",
    "next_eval",
    "next_save",
    "best_return",
    "reached_return",
    "rejected_updates",
)
log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Sample, estimate advantages, update the policy, fit the baseline; evaluate and save.

    Attributes:
        policy: the policy, moved by `rule` alone.
        baseline: fitted after the update, or before it on trajectories of its own.
        rule: the update rule.
        advantage: estimator with the contract of rlopt.advantages, its settings bound.
        rollout: sampler with `collect` and `collect_for_baseline`, `restart` for after a failure,
            `state_dict` and `load_state_dict`.
        evaluate: runs a given number of deterministic episodes of the policy.
        logger: takes one row of metrics an iteration.
        settings: the top-level settings `total_steps`, `average_over`, `chunk_size`,
            `standardize_advantage`, `stop_at_return`, `diagnostics`, `on_nonfinite`, `eval`,
            `checkpoint` and `log` of configs/base.yaml.
        schedules: of numbers of the rule and the baseline, by their names in the config.
        stop_signal: number of the signal that asked to end after the iteration, or 0.
    """

    policy: Policy
    baseline: Baseline
    rule: UpdateRule
    advantage: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    rollout: Any
    evaluate: Callable[[int], Evaluation]
    logger: Logger | NoLogger
    settings: Any
    schedules: Mapping[str, Schedule]

    def __post_init__(self) -> None:
        self.env_steps, self.rejected_updates = 0, 0
        self.next_eval, self.next_save = self.settings.eval.every, self.settings.checkpoint.every
        self.best_return, self.reached_return = -math.inf, False
        self.recent_returns: deque[float] = deque(maxlen=EPISODE_WINDOW)
        self.stop_signal = 0

    def train(self) -> Evaluation:
        """Run to `total_steps` or `stop_at_return`; returns the final policy's evaluation.

        Raises:
            KeyboardInterrupt: a signal asked to stop; its argument is the exit code.
        """
        settings = self.settings
        done = self.reached_return or self.env_steps >= settings.total_steps
        if done:  # resumed after its last iteration
            return self.evaluate(settings.eval.final_episodes)
        while not done:
            metrics = self._iterate_or_undo()
            done = self.env_steps >= settings.total_steps
            if done or self.env_steps >= self.next_eval:
                episodes = settings.eval.final_episodes if done else settings.eval.episodes
                evaluation = self._evaluate_or_save(episodes, metrics)
                threshold = settings.stop_at_return
                if not done and threshold is not None and evaluation.mean >= threshold:
                    done = self.reached_return = True
                    evaluation = self._evaluate_or_save(settings.eval.final_episodes, metrics)
                self.next_eval += settings.eval.every * (self.env_steps >= self.next_eval)
                self._keep_if_best(evaluation)
                metrics |= evaluation_metrics(evaluation, settings.on_nonfinite)
            self.logger.log(self.env_steps, metrics)
            stop = total_count(int(self.stop_signal > 0)) > 0
            if done or stop or self.env_steps >= self.next_save:
                self.next_save += settings.checkpoint.every * (self.env_steps >= self.next_save)
                self.save("last")
            if stop and not done:
                raise KeyboardInterrupt(128 + (self.stop_signal or signal.SIGINT))
        return evaluation

    def _iterate_or_undo(self) -> Metrics:
        """One iteration; where it fails nothing is learned from it.

        Raises:
            Exception: what went wrong, after a checkpoint of what there was before; a number that
                is not finite is counted and passed over where `on_nonfinite` is `skip`.
        """
        before, env_steps = _copied(self._learned()), self.env_steps
        try:
            metrics = self.iterate()
        except Exception as error:
            self._load_learned(before)
            self.rollout.restart()
            nonfinite = isinstance(error, FloatingPointError)
            self.rejected_updates += nonfinite
            if not nonfinite or self.settings.on_nonfinite == "stop":
                self.env_steps = env_steps
                self.save("last")
                raise
            log.warning("iteration rejected, the policy is as it was: %s", error)
            if isinstance(error, NonFiniteError):
                self.env_steps += max(error.num_steps, 1)  # at least 1, so that training ends
            metrics = {"rollout/return_mean": self._recent_return(), "policy/kl": 0.0}
        return {**metrics, "update/rejected": self.rejected_updates}

    def _evaluate_or_save(self, episodes: int, metrics: Metrics) -> Evaluation:
        """An evaluation; where it fails, the iteration before it is not lost."""
        try:
            evaluation = self.evaluate(episodes)
        except Exception:
            self.logger.log(self.env_steps, metrics)
            self.save("last")
            raise
        for remark in evaluation.remarks if rank() == 0 else ():
            log.warning(remark)
        return evaluation

    def iterate(self) -> Metrics:
        """Sample, update the policy, fit the baseline, and only then move the normaliser."""
        start = time.perf_counter()
        steps_before = self.env_steps
        progress = min(1.0, self.env_steps / self.settings.total_steps)
        scheduled = {f"schedule/{key}": s.apply(progress) for key, s in self.schedules.items()}
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
            "rollout/return_mean": self._recent_return(),
            "rollout/length_mean": float(np.mean(lengths or [np.nan])),
            "rollout/episodes": len(returns),
            **update_metrics,
            "baseline/explained_variance": explained,
            **fit_metrics,
            **scheduled,
            "time/steps_per_second": (self.env_steps - steps_before) / seconds,
            "time/rollout_share": (sampled - start) / seconds,
        }

    def _recent_return(self) -> float:
        return float(np.mean(self.recent_returns or [np.nan]))

    @torch.no_grad()
    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantages and the baseline's regression targets, both [T, N]."""
        value = self.baseline(obs_for(self.baseline, rollout.obs), rollout.step)
        advantage = self.advantage(
            rollout.reward, value, rollout.terminated, rollout.truncated, rollout.valid
        )
        bad = rollout.valid & ~torch.isfinite(advantage + value[:-1])
        if bad.any():
            row, index = bad.nonzero()[0].tolist()
            step = int(rollout.step[row, index])
            place = f"environment {index} at step {step} of its episode"
            raise FloatingPointError(f"the advantage estimate of {place} is not finite")
        return advantage, advantage + value[:-1]

    def _fit_baseline(self, rollout: Rollout, target: Tensor) -> Metrics:
        obs, step = rollout.flatten(rollout.obs[:-1]), rollout.flatten(rollout.step[:-1])
        obs = obs_for(self.baseline, obs)
        metrics = self.baseline.fit(obs, step, rollout.flatten(target))
        _check_finite("the baseline fit's", metrics)
        return metrics

    def _make_batch(self, rollout: Rollout, advantage: Tensor) -> Batch:
        if self.settings.standardize_advantage:
            advantage = standardize(advantage, rollout.valid)
        horizon = 1.0
        if self.settings.average_over == "trajectories":
            horizon = total_count(rollout.num_steps) / total_count(rollout.num_trajectories)
        obs, action = rollout.flatten(rollout.obs[:-1]), rollout.flatten(rollout.action)
        advantage, starts = rollout.flatten(advantage), None
        if isinstance(self.policy, RecurrentPolicy):
            starts = rollout.flatten(rollout.starts)
            obs = torch.cat([obs, starts[:, None].to(obs)], dim=-1)
        return Batch(obs, action, advantage, horizon, self.settings.chunk_size, starts)

    def _update(self, batch: Batch) -> Metrics:
        """One step of the rule; KL, entropy and surrogate are measured alike for every rule."""
        audit = Audit(self.policy, batch) if self.settings.diagnostics else None
        with torch.no_grad():
            old = audit.old if audit else self.policy(batch.obs)
        before = copied(self.policy) if self._records_histograms() else None
        metrics = self.rule.step(batch)
        _check_finite("the update's", metrics)
        if audit:
            metrics |= audit.metrics()
        with torch.no_grad():
            new = self.policy(batch.obs)
            ratio = (new.log_prob(batch.action) - old.log_prob(batch.action)).exp()
            gain = batch.expect((ratio - 1) * batch.advantage)
            kl = batch.expect(kl_divergence(old, new))
        if not torch.isfinite(kl) or not torch.isfinite(gain):
            raise FloatingPointError(f"the update left KL {kl:.3g} and surrogate gain {gain:.3g}")
        if before is not None:
            tensors = histograms(self.policy, before, batch.advantage, ratio)
            self.logger.histograms(self.env_steps, tensors)
        return {
            "policy/kl": float(kl),
            "policy/surrogate_gain": float(gain),
            "policy/entropy": float(total_mean(old.entropy())),
            "policy/entropy_after": float(total_mean(new.entropy())),
            **metrics,
        }

    def _records_histograms(self) -> bool:
        """Whether they are asked for and an evaluation follows this update."""
        due = self.env_steps >= min(self.next_eval, self.settings.total_steps)
        return self.settings.log.histograms and due

    def _keep_if_best(self, evaluation: Evaluation) -> None:
        if evaluation.mean > self.best_return:
            self.best_return = evaluation.mean
            self.save("best")

    def save(self, name: str) -> None:
        """Write checkpoints/<name>.pt into the run folder, from the first process."""
        if rank() > 0:
            return
        folder = Path(self.logger.folder) / "checkpoints"
        if name == "last":
            self.logger.flush()
            checkpoint.save_last(folder, self.state_dict())
        else:
            checkpoint.save(folder / f"{name}.pt", self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run must know to go on as if it had never ended."""
        return {
            **self._learned(),
            "rollout": self.rollout.state_dict(),
            "random": random_state(),
            "recent_returns": list(self.recent_returns),
            **{name: getattr(self, name) for name in COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`, for a trainer that has not trained."""
        self._load_learned(state)
        self.rollout.load_state_dict(state["rollout"])
        self.recent_returns.extend(state["recent_returns"])
        for name in COUNTERS:
            setattr(self, name, state[name])
        set_random_state(state["random"])

    def _learned(self) -> dict[str, Any]:
        """The state of everything that learns."""
        return {name: getattr(self, name).state_dict() for name in LEARNERS}

    def _load_learned(self, state: dict[str, Any]) -> None:
        for name in LEARNERS:
            getattr(self, name).load_state_dict(state[name])


def _copied(state: Any) -> Any:
    """Containers and tensors of a state, copied."""
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state.clone() if isinstance(state, Tensor) else state


def _check_finite(whose: str, metrics: Metrics) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{whose} {name} is {value}")


def evaluation_metrics(evaluation: Evaluation, on_nonfinite: str) -> Metrics:
    """Tags of an evaluation."""
    counts = {"eval/cut_episodes": evaluation.num_cut}
    if on_nonfinite == "skip":
        counts["eval/nonfinite_episodes"] = evaluation.num_nonfinite
    return {
        "eval/return_mean": evaluation.mean,
        "eval/return_std": evaluation.std,
        "eval/length_mean": evaluation.length_mean,
        **counts,
    }
