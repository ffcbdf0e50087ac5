"""Sampling: policy + vector environment -> Rollout, of fixed length or of whole trajectories."""

from __future__ import annotations

import logging
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from rlopt import check, env_state
from rlopt.distributed import share
from rlopt.envs import derive_seed
from rlopt.recorder import Recorder, run_episodes, sample
from rlopt.types import Policy, Rollout

log = logging.getLogger(__name__)


class StepRollout:
    """A fixed number of rows from each environment; episodes go on from one rollout to the next.

    Partial episodes are bootstrapped by the advantage estimator.

    Args:
        env: the vector environment, which this object alone steps.
        device: where the tensors go.
        seed: of the environments' first reset; that of a later one, after a resume or a
            `restart`, is derived from it and the number of the rollout.
        num_steps: rows T.
    """

    def __init__(
        self, env: VectorEnv, device: torch.device | str, seed: int, *, num_steps: int
    ) -> None:
        check.whole(num_steps=num_steps)
        self.num_steps = num_steps
        self.seed = seed
        self.num_rollouts = 0
        self.why_unknown = env_state.unknown_state(env)
        self.recorder = Recorder(env, device, sample)

    def collect(self, policy: Policy) -> Rollout:
        """The next T rows."""
        if self.recorder.needs_reset:
            self.recorder.reset(_reset_seed(self.seed, self.num_rollouts))
        self.num_rollouts += 1
        while True:
            rollout = self.recorder.record(policy, quota=None, num_rows=self.num_steps)
            if rollout.valid.any():  # with few rows all of them may be autoresets
                return rollout

    def collect_for_baseline(self, policy: Policy) -> Rollout | None:
        """None: the baseline is fitted on the update's own data."""
        return None

    def restart(self) -> None:
        """Drop the partial episodes: the next rollout starts afresh."""
        self.num_rollouts += 1  # which may have failed before it was counted
        self.recorder.needs_reset = True

    def why_inexact(self) -> str | None:
        """What keeps a resumed run from going on in the partial episodes, or None."""
        return self.why_unknown

    def state_dict(self) -> dict[str, Any]:
        """Where the rollouts are."""
        state = self.recorder.state_dict()
        if state is None and not self.recorder.needs_reset and self.why_unknown is None:
            self.why_unknown = env_state.unknown_state(self.recorder.env)  # since it was stepped
            log.info("resume starts new episodes: the state of %s", self.why_unknown)
        return {"num_rollouts": self.num_rollouts, "recorder": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`; where the environments' state is unknown, a fresh start."""
        self.num_rollouts = state["num_rollouts"]
        if state["recorder"] is None:
            log.info("this resume starts new episodes: the checkpoint holds none to go on with")
        else:
            self.recorder.reset(self.seed)
            try:
                self.recorder.load_state_dict(state["recorder"])
            except env_state.UnknownStateError as error:
                log.warning("this resume starts new episodes: %s", error)
                self.recorder.needs_reset = True


class EpisodeRollout:
    """M whole trajectories of all processes, each from a fresh reset to its end.

    How many each environment runs is fixed before it starts, so that short episodes are not
    favoured: "the first M that end" would be.

    Args:
        env: the vector environment, which this object alone steps.
        device: where the tensors go.
        seed: of the environments' first reset; those of later ones are derived from it, so that
            nothing but their number must be saved.
        episodes: M.
        baseline_episodes: the lecture's N separate trajectories that fit the baseline before M new
            ones form the gradient; 0 to fit it after the update, on the same M.
        max_episode_steps: an episode longer than that is an error, so that a never-ending one is no
            hang.
    """

    def __init__(
        self,
        env: VectorEnv,
        device: torch.device | str,
        seed: int,
        *,
        episodes: int,
        baseline_episodes: int,
        max_episode_steps: int,
    ) -> None:
        check.whole(episodes=episodes, max_episode_steps=max_episode_steps)
        check.whole(0, baseline_episodes=baseline_episodes)
        self.episodes = share(episodes=episodes)
        self.baseline_episodes = share(baseline_episodes=baseline_episodes)
        self.max_episode_steps = max_episode_steps
        self.seed = seed
        self.num_rollouts = 0
        self.recorder = Recorder(env, device, sample)

    def collect(self, policy: Policy) -> Rollout:
        """M trajectories."""
        return self._collect(policy, self.episodes)

    def collect_for_baseline(self, policy: Policy) -> Rollout | None:
        """N other trajectories, or None where N = 0."""
        return self._collect(policy, self.baseline_episodes) if self.baseline_episodes else None

    def _collect(self, policy: Policy, episodes: int) -> Rollout:
        seed = _reset_seed(self.seed, self.num_rollouts)
        self.num_rollouts += 1
        self.recorder.reset(seed)
        return run_episodes(self.recorder, policy, episodes, self.max_episode_steps)

    def restart(self) -> None:
        """Nothing: every rollout starts afresh."""

    def why_inexact(self) -> str | None:
        """None: a resumed run is exact on every backend."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The number of rollouts, from which the next one's seed is derived."""
        return {"num_rollouts": self.num_rollouts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.num_rollouts = state["num_rollouts"]


def _reset_seed(seed: int, number: int) -> int:
    """The seed of the environments before rollout `number`."""
    return derive_seed(seed, number) if number else seed
