"""Stepping a vector environment with a policy, and keeping what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from rlopt import env_state, faults
from rlopt.action_spaces import env_action
from rlopt.observations import obs_dtype
from rlopt.seeding import seed_spaces
from rlopt.types import (
    NonFiniteError,
    Policy,
    RecurrentPolicy,
    Rollout,
    float_tensor,
    obs_tensor,
)

Choose = Callable[[Distribution], Tensor]


def sample(dist: Distribution) -> Tensor:
    """A random action."""
    return dist.sample()


def mode(dist: Distribution) -> Tensor:
    """The most probable action."""
    return dist.mode


class EndlessEpisodeError(ValueError):
    """An episode did not end within the limit."""


@dataclass
class Row:
    """What one step of a vector environment gave, before autoreset rows are left out.

    Attributes:
        action: [N, *], as sampled.
        reward: [N].
        terminated: [N] bool.
        truncated: [N] bool.
        valid: [N] bool, False where the step only reset the environment.
    """

    action: NDArray
    reward: NDArray
    terminated: NDArray
    truncated: NDArray
    valid: NDArray

    @property
    def done(self) -> NDArray:
        """[N] bool, the episode has ended."""
        return self.terminated | self.truncated


class Recorder:
    """Steps a vector environment and keeps rows; knows NEXT_STEP autoreset and episode steps.

    A recurrent policy's state is carried from step to step, and is 0 where an episode starts.
    """

    def __init__(self, env: VectorEnv, device: torch.device | str, choose: Choose) -> None:
        self.env = env
        self.device = device
        self.choose = choose
        self.obs_dtype = obs_dtype(env.single_observation_space)
        self.needs_reset = True

    def reset(self, seed: int | None) -> None:
        """Start a fresh episode in every environment."""
        N = self.env.num_envs
        if seed is not None:
            seed_spaces(self.env, seed)
        self.obs = faults.reset(self.env, seed)
        self.step_index = np.zeros(N, dtype=np.int64)
        self.autoreset = np.zeros(N, dtype=bool)  # the next row only resets this environment
        self.episode_return = np.zeros(N)
        self.state: Tensor | None = None  # [N, H] of a recurrent policy, before `obs`
        self.needs_reset = False

    def state_dict(self) -> Any:
        """Where each episode is, the environments' state included; None where it is unknown."""
        if self.needs_reset:
            return None
        own = (self.obs, self.step_index, self.autoreset, self.episode_return)
        memory = None if self.state is None else self.state.cpu().numpy()
        return env_state.capture_known({"env": self.env, "own": own, "memory": memory})

    def load_state_dict(self, state: Any) -> None:
        """The reverse of `state_dict`, for a recorder that was reset."""
        restored = env_state.restore(state, {"env": self.env})
        self.obs, self.step_index, self.autoreset, self.episode_return = restored["own"]
        if restored.get("memory") is not None:
            self.state = float_tensor(restored["memory"], self.device)

    def step(self, policy: Policy) -> Row:
        """Act and step once in every environment, and keep count of the episodes."""
        action, env_action = self._act(policy)
        self.obs, reward, terminated, truncated = faults.step(self.env, env_action)
        row = Row(action, reward, terminated, truncated, ~self.autoreset)
        self.episode_return = np.where(self.autoreset, 0.0, self.episode_return + reward)
        self.step_index = np.where(self.autoreset, 0, self.step_index + 1)
        self.autoreset = row.done
        return row

    @torch.inference_mode()
    def _act(self, policy: Policy) -> tuple[NDArray, Any]:
        """Actions as sampled, and as the environment takes them."""
        obs = obs_tensor(self.obs, self.obs_dtype, policy, self.device)
        dist = policy(obs) if self.state is None else self._advance(policy, obs, self.state)
        action = self.choose(dist).cpu().numpy()
        return action, env_action(self.env.single_action_space, action)

    def begin(self, policy: Policy) -> None:
        """Under a recurrent policy, start with the state 0 after a reset; before the first step."""
        if isinstance(policy, RecurrentPolicy) and self.state is None:
            zeros = np.zeros((self.env.num_envs, policy.state_size))
            self.state = float_tensor(zeros, self.device)

    def _advance(self, policy: Any, obs: Tensor, state: Tensor) -> Distribution:
        dist, new = policy.advance(obs, state)
        self.state = new
        if self.autoreset.any():  # the next observation is an episode's first
            self.state = new * float_tensor(~self.autoreset, self.device)[:, None]
        return dist

    def record(
        self,
        policy: Policy,
        quota: NDArray[np.int64] | None,
        num_rows: int,
        max_episode_steps: int | None = None,
    ) -> Rollout:
        """Step for `num_rows` rows, or until each environment has ended `quota` [N] episodes.

        Stops too where one of these episodes is longer than `max_episode_steps`.

        Raises:
            NonFiniteError: an observation or a reward is not finite.
        """
        for i in np.flatnonzero(~is_finite(self.obs)):
            raise nonfinite(int(i), "observation", int(self.step_index[i]), num_steps=0)
        self.begin(policy)
        obs, steps, states = [self.obs], [self.step_index], [self.state]
        rows: list[Row] = []
        returns: list[float] = []
        lengths: list[int] = []
        remaining = None if quota is None else quota.copy()
        while len(rows) < num_rows and (remaining is None or remaining.any()):
            row = self.step(policy)
            if remaining is not None:
                row.valid &= remaining > 0
            for i in np.flatnonzero(row.done & row.valid):
                returns.append(float(self.episode_return[i]))
                lengths.append(int(self.step_index[i]))
                if remaining is not None:
                    remaining[i] -= 1

            obs.append(self.obs)
            states.append(self.state)
            steps.append(self.step_index)
            rows.append(row)
            if not np.isfinite(self.obs).all():
                break  # no policy can act on it; _check_finite says where it came from
            if (
                remaining is not None
                and max_episode_steps is not None
                and (self.step_index[remaining > 0].max(initial=0) > max_episode_steps)
            ):
                break

        to_device = partial(torch.as_tensor, device=self.device)
        valid = np.stack([row.valid for row in rows])
        reward = np.where(valid, np.stack([row.reward for row in rows]), 0.0)
        rollout = Rollout(
            obs=_with_states(
                obs_tensor(np.stack(obs), self.obs_dtype, policy, self.device), states
            ),
            action=to_device(np.stack([row.action for row in rows])),
            reward=float_tensor(reward, self.device),
            terminated=to_device(np.stack([row.terminated for row in rows])),
            truncated=to_device(np.stack([row.truncated for row in rows])),
            valid=to_device(valid),
            step=to_device(np.stack(steps)),
            episode_returns=returns,
            episode_lengths=lengths,
        )
        _check_finite(rollout)
        return rollout


def is_finite(obs: NDArray) -> NDArray:
    """[N] bool, all entries of the observation are finite."""
    return np.isfinite(obs).reshape(len(obs), -1).all(-1)


def nonfinite(index: int, name: str, step: int, num_steps: int) -> NonFiniteError:
    """The error that an environment gave a reward or an observation that is not finite."""
    message = f"environment {index} gave a non-finite {name} at step {step} of its episode"
    return NonFiniteError(message, num_steps)


def divided(episodes: int, num_envs: int) -> NDArray[np.int64]:
    """How many of the episodes each environment runs, [num_envs]."""
    return np.full(num_envs, episodes // num_envs) + (np.arange(num_envs) < episodes % num_envs)


def run_episodes(
    recorder: Recorder, policy: Policy, episodes: int, max_episode_steps: int
) -> Rollout:
    """`episodes` whole trajectories from a recorder that was just reset, divided evenly beforehand.

    Raises:
        EndlessEpisodeError: an episode did not end within `max_episode_steps`.
    """
    quota = divided(episodes, recorder.env.num_envs)
    num_rows = int(quota.max()) * (max_episode_steps + 1)
    rollout = recorder.record(policy, quota, num_rows, max_episode_steps)
    all_ended = len(rollout.episode_returns) == episodes
    if not all_ended or max(rollout.episode_lengths) > max_episode_steps:
        raise EndlessEpisodeError(
            f"an episode did not end within {max_episode_steps} steps: set env.max_episode_steps, "
            "raise rollout.max_episode_steps, or use rollout=steps"
        )
    return rollout


def _with_states(obs: Tensor, states: list[Any]) -> Tensor:
    """Observations [T+1, N, d] with the states [N, H] before them behind, where there are any."""
    return obs if states[0] is None else torch.cat([obs, torch.stack(states)], dim=-1)


def _check_finite(rollout: Rollout) -> None:
    for name, x in (("reward", rollout.reward), ("observation", rollout.obs)):
        if not x.is_floating_point():
            continue
        finite = x.abs() <= torch.finfo(torch.float32).max  # what networks compute with
        bad = ~finite.reshape(*x.shape[:2], -1).all(-1)
        if bad.any():
            row, index = bad.nonzero()[0].tolist()
            raise nonfinite(index, name, int(rollout.step[row, index]), rollout.num_steps)
