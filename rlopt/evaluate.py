"""Evaluation: returns of a frozen policy on environments of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RecordVideo

from rlopt.envs import flat_observations, make_single_env
from rlopt.recorder import EndlessEpisodeError, Recorder, mode, run_episodes, sample
from rlopt.types import Policy

MAX_EPISODE_STEPS = 100_000
GIF_SECONDS, GIF_HEIGHT, GIF_FPS = 10, 160, 15


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

    `env_settings` are the arguments of `envs.make_vector_env`.

    Raises:
        ValueError: the environment can't be drawn, or a package is missing (with what to install).
    """

    def make() -> gym.Env:
        env = _drawable(env_settings)
        return RecordVideo(env, str(folder), episode_trigger=lambda episode: True)

    try:
        env = flat_observations(SyncVectorEnv([make]), env_settings.get("action_mask", False))
        evaluate(
            policy, env, episodes=episodes, seed=seed, deterministic=deterministic, device=device
        )
        env.close()
    except gym.error.DependencyNotInstalled as error:
        what = f"a video of env={env_settings['id']} needs a package"
        raise ValueError(f"{what}: pip install -e '.[video]' ({error})") from error


def _drawable(env_settings: Mapping[str, Any]) -> gym.Env:
    """One environment that renders into arrays."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame asks for no screen, nor complains
    settings = {key: env_settings[key] for key in ("max_episode_steps", "kwargs", "wrappers")}
    return make_single_env(env_settings["id"], **settings, render_mode="rgb_array")


def refuse_undrawable(env_settings: Mapping[str, Any]) -> None:
    """See to it, before training, that `record_video` will work.

    Raises:
        ValueError: the environment can't be drawn, or a package is missing (with what to install).
    """
    try:
        import moviepy  # noqa: F401

        with warnings.catch_warnings(action="ignore"):  # the error says it
            env = _drawable(env_settings)
            env.reset(seed=0)
            frame = env.render()
            env.close()
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        what = f"a video of env={env_settings['id']} needs a package"
        raise ValueError(f"{what}: pip install -e '.[video]' ({error})") from error
    except Exception as error:  # whatever an environment raises that was not made to be drawn
        raise ValueError(f"env={env_settings['id']} can't be drawn: {error}") from error
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"env={env_settings['id']} can't be drawn: render() gave no array")


def as_gif(video: Path) -> bytes:
    """The first seconds of a video, small: what TensorBoard plays."""
    from moviepy import VideoFileClip

    with VideoFileClip(str(video)) as clip, TemporaryDirectory() as folder:
        path = Path(folder) / "video.gif"
        small = clip.subclipped(0, min(clip.duration, GIF_SECONDS)).resized(height=GIF_HEIGHT)
        small.write_gif(str(path), fps=GIF_FPS, logger=None)
        return path.read_bytes()
