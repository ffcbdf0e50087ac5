"""Evaluation: returns of a frozen policy on environments of its own."""

from __future__ import annotations

import itertools
import math
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
from numpy.typing import NDArray

from rlopt.contract import Contract
from rlopt.envs import derive_seed, flat_observations, make_single_env
from rlopt.recorder import Recorder, Row, divided, is_finite, mode, nonfinite, sample
from rlopt.seeding import seeded
from rlopt.types import Policy

LONGEST_EPISODE = (
    10_000  # steps after which an episode is cut where the environment has no time limit
)
GIF_SECONDS, GIF_HEIGHT, GIF_FPS = 10, 160, 15


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of episodes.

    Attributes:
        returns: of each episode; of one that was cut, so far.
        lengths: in steps.
        num_cut: episodes among them that were cut because they did not end.
        num_nonfinite: episodes that are not among them because an observation or a reward was not
            finite.
    """

    returns: list[float]
    lengths: list[int]
    num_cut: int = 0
    num_nonfinite: int = 0

    @property
    def mean(self) -> float:
        """Mean return; nan without any."""
        return float(np.mean(self.returns)) if self.returns else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the returns; nan without any."""
        if len(set(self.returns)) == 1:
            return 0.0  # np.std would give the rounding of the mean
        return float(np.std(self.returns)) if self.returns else math.nan

    @property
    def length_mean(self) -> float:
        """Mean length; nan without any."""
        return float(np.mean(self.lengths)) if self.lengths else math.nan

    @property
    def remarks(self) -> list[str]:
        """What the mean does not say, one line each."""
        total, lines = len(self.returns) + self.num_nonfinite, []
        if self.num_cut:
            lines.append(
                f"evaluation: {self.num_cut} of {total} episodes did not end and were cut after "
                f"{max(self.lengths)} steps"
            )
        if self.num_nonfinite:
            lines.append(
                f"evaluation: {self.num_nonfinite} of {total} episodes are left out, "
                "an observation or a reward was not finite"
            )
        return lines


def evaluate(
    policy: Policy,
    env: VectorEnv,
    *,
    episodes: int,
    seed: int,
    deterministic: bool,
    device: torch.device | str,
    max_episode_steps: int = LONGEST_EPISODE,
    on_nonfinite: str = "stop",
) -> Evaluation:
    """Run `episodes` episodes, by the most probable actions or by sampled ones.

    How many each environment runs is fixed before it starts. An episode that has not ended after
    `max_episode_steps` is cut: a greedy policy may loop for ever. What its environment has left to
    do waits until the others have finished, and starts with a new reset of all.

    Reproducible from `seed` alone, and without a trace on training: nothing updates the normaliser,
    and the process' random state is put back.

    Args:
        policy: stays as it is.
        env: the vector environment.
        episodes: how many.
        seed: of the environments and of the process' random generators.
        deterministic: the most probable actions; else sampled ones.
        device: of the policy.
        max_episode_steps: after which an episode is cut.
        on_nonfinite: `stop`, or `skip` to leave out and count episodes with a number that is not
            finite.

    Raises:
        NonFiniteError: an observation or a reward is not finite, and `on_nonfinite` is `stop`.
    """
    recorder = Recorder(env, device, mode if deterministic else sample)
    tally = _Tally(divided(episodes, env.num_envs), max_episode_steps, on_nonfinite)
    with seeded(seed):
        for number in itertools.count():
            recorder.reset(derive_seed(seed, number) if number else seed)
            recorder.begin(policy)
            tally.start(recorder)
            while tally.active.any():
                tally.add(recorder, recorder.step(policy))
            if not tally.quota.any():
                break
    return Evaluation(tally.returns, tally.lengths, tally.num_cut, tally.num_nonfinite)


class _Tally:
    """Counts the episodes of an evaluation.

    Attributes:
        quota: [N], how many each environment still has to run.
        stuck: [N] bool, the environment is in an episode that does not count any more: it waits for
            the next reset of all.
    """

    def __init__(self, quota: NDArray[np.int64], max_episode_steps: int, on_nonfinite: str) -> None:
        self.quota = quota
        self.max_episode_steps = max_episode_steps
        self.on_nonfinite = on_nonfinite
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.num_cut = self.num_nonfinite = 0

    @property
    def active(self) -> NDArray:
        """[N] bool, the environment runs an episode that counts."""
        return (self.quota > 0) & ~self.stuck

    def start(self, recorder: Recorder) -> None:
        """Take the first observations after a reset of all."""
        self.stuck = np.zeros(len(self.quota), bool)
        self._leave_out(recorder, self.active & ~is_finite(recorder.obs), "observation")

    def add(self, recorder: Recorder, row: Row) -> None:
        """Take one step of every environment."""
        self._leave_out(recorder, self.active & ~np.isfinite(row.reward), "reward")
        self._leave_out(recorder, self.active & ~is_finite(recorder.obs), "observation")
        running = self.active & row.valid
        cut = running & ~row.done & (recorder.step_index >= self.max_episode_steps)
        ended = running & row.done | cut
        for i in np.flatnonzero(ended):
            self.returns.append(float(recorder.episode_return[i]))
            self.lengths.append(int(recorder.step_index[i]))
        self.quota -= ended
        self.stuck |= cut
        self.num_cut += int(cut.sum())

    def _leave_out(self, recorder: Recorder, bad: NDArray, what: str) -> None:
        """Count episodes with a number that is not finite, and go on without them."""
        for i in np.flatnonzero(bad):
            if self.on_nonfinite == "stop":
                raise nonfinite(int(i), what, int(recorder.step_index[i]), num_steps=0)
        self.quota -= bad
        self.stuck |= bad
        self.num_nonfinite += int(bad.sum())
        if self.stuck.any() and not is_finite(recorder.obs).all():
            recorder.obs = np.nan_to_num(recorder.obs)  # the policy acts on all of them


def record_video(
    policy: Policy, env_settings: Mapping[str, Any], folder: Path, **settings: Any
) -> None:
    """Write one mp4 for each episode into `folder`, by Gymnasium's recorder.

    Args:
        policy: as of `evaluate`.
        env_settings: the arguments of `envs.make_vector_env`.
        folder: is made.
        settings: the keywords of `evaluate`.

    Raises:
        ValueError: the environment can't be drawn, or a package is missing (with what to install).
    """
    masked = env_settings.get("action_mask", False)

    def make() -> gym.Env:
        env = _drawable(env_settings)
        recorded = RecordVideo(env, str(folder), episode_trigger=lambda episode: True)
        return Contract(recorded, masked=masked, backend="sync")

    try:
        env = flat_observations(SyncVectorEnv([make]), masked)
        evaluate(policy, env, **settings)
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
