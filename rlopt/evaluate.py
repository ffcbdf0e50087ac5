"""Evaluation: returns of a frozen policy on environments of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RecordVideo

from rlopt.envs import find_spec, flat_observations
from rlopt.rollout import EndlessEpisodeError, Recorder, mode, run_episodes, sample
from rlopt.types import Policy

MAX_EPISODE_STEPS = 100_000


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of whole episodes."""

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns."""
        return float(np.std(self.returns))


def evaluate(
    policy: Policy,
    env: VectorEnv,
    *,
    episodes: int,
    seed: int,
    deterministic: bool,
    device: torch.device | str,
) -> Evaluation:
    """Run `episodes` whole episodes, by the most probable actions or by sampled ones.

    Reproducible from `seed` alone, and without a trace on training: nothing updates the normaliser
    and torch's random state is put back.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        recorder = Recorder(env, device, mode if deterministic else sample)
        recorder.reset(seed)
        try:
            rollout = run_episodes(recorder, policy, episodes, MAX_EPISODE_STEPS)
        except EndlessEpisodeError as error:
            raise EndlessEpisodeError(
                f"evaluation: an episode did not end within {MAX_EPISODE_STEPS} steps: "
                "set env.max_episode_steps"
            ) from error
    return Evaluation(rollout.episode_returns, rollout.episode_lengths)


def record_video(
    policy: Policy,
    env_settings: Mapping[str, Any],
    folder: Path,
    *,
    episodes: int,
    seed: int,
    deterministic: bool,
    device: torch.device | str,
) -> None:
    """Write one mp4 for each episode into `folder`, by Gymnasium's recorder.

    `env_settings` are those of configs/base.yaml.

    Raises:
        ValueError: the environment can't be drawn, or a package is missing (with what to install).
    """
    spec = find_spec(env_settings["id"])
    limit = env_settings["max_episode_steps"]
    options = {**env_settings["kwargs"], **({"max_episode_steps": limit} if limit else {})}

    def make() -> gym.Env:
        env = gym.make(spec, render_mode="rgb_array", **options)
        return RecordVideo(env, str(folder), episode_trigger=lambda episode: True)

    try:
        env = flat_observations(SyncVectorEnv([make]), env_settings.get("action_mask", False))
        evaluate(
            policy, env, episodes=episodes, seed=seed, deterministic=deterministic, device=device
        )
        env.close()
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(
            f"video=true needs a package: pip install -e '.[video]' ({error})"
        ) from error
