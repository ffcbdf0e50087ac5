"""A trained policy out of a run folder, as a function from observations to actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from rlopt import check, checkpoint
from rlopt.action_spaces import env_action
from rlopt.build import env_settings, make_env, make_policy
from rlopt.config import ConfigError, one_line, read_config
from rlopt.envs import make_single_env
from rlopt.masks import flat_mask, mask_last, mask_size
from rlopt.observations import obs_dtype
from rlopt.recorder import mode, sample
from rlopt.types import RecurrentPolicy, float_tensor, obs_tensor


@dataclass
class TrainedPolicy:
    """Observation in, action for `env.step` out.

    A recurrent policy remembers the observations since `reset`: call that before every episode.

    Attributes:
        module: the policy itself: `module(obs)` is the distribution at flat observations [B, d].
        observation_space: of one environment, as it is before observations are flattened.
        action_space: of one environment.
        env_id: what it was trained on.
        env_steps: for how many steps.
        device: where the module is.
        mask_size: entries of the action mask, or 0.
        make_env: makes one environment as the policy knows it, of the run's kwargs, time limit and
            wrappers, which `gym.make(env_id)` would leave out; with `render_mode="rgb_array"` one
            that can be drawn.
        state: [B, H] of a recurrent policy, of as many environments as the first batch had; None
            before it.
    """

    module: Any
    observation_space: spaces.Space
    action_space: spaces.Space
    env_id: str
    env_steps: int
    device: str
    mask_size: int
    make_env: Callable[..., gym.Env]
    state: Tensor | None = None

    def reset(self, where: Any = None) -> None:
        """Forget the episodes so far: all, or those of a batch for which `where` [B] is True.

        Policies without memory have nothing to forget.
        """
        if where is None:
            self.state = None
        elif self.state is not None:
            ended = torch.as_tensor(where, dtype=torch.bool, device=self.device)
            self.state = self.state.masked_fill(ended[:, None], 0.0)

    @torch.inference_mode()
    def __call__(self, obs: Any, *, deterministic: bool = True, action_mask: Any = None) -> Any:
        """The action at an observation, or the actions at a batch of them; within a Box's bounds.

        Args:
            obs: an observation as the environment gives it; or a batch as a vector environment
                does, with one more dimension in front.
            deterministic: the most probable action; else one is sampled, by torch's random state.
            action_mask: `info["action_mask"]`, where the policy was trained with it.

        Raises:
            ValueError: an observation that does not fit the space, no mask that fits, or a batch of
                another size since `reset`, under a recurrent policy.
        """
        try:
            shape = batch_shape(self.observation_space, obs)
            flat = flatten(self.observation_space, obs, *(shape or [None]))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"obs {_described(obs)} does not fit {self.observation_space}, "
                "nor is it a batch [B, ...] of such"
            ) from error
        if self.mask_size:
            masks = None if action_mask is None else self._masks(action_mask, shape)
            flat = mask_last(self.observation_space, flat, self.mask_size, masks)
        dtype = obs_dtype(self.observation_space)
        dist = self._distribution(obs_tensor(flat, dtype, self.module, self.device))
        chosen = mode(dist) if deterministic else sample(dist)
        action = env_action(self.action_space, chosen.cpu().numpy())
        if shape:
            return action
        one = next(iter(iterate(batch_space(self.action_space, 1), action)))
        return np.asarray(one) if isinstance(self.action_space, spaces.Box) else one

    def _masks(self, action_mask: Any, shape: tuple[int, ...]) -> NDArray:
        """The mask of one observation, or the masks of a batch, as rows [B, mask_size]."""
        rows = action_mask if shape else [action_mask]
        return np.stack([flat_mask(row, self.mask_size) for row in rows])

    def _distribution(self, obs: Tensor) -> Distribution:
        if not isinstance(self.module, RecurrentPolicy):
            return self.module(obs)
        if self.state is None:
            zeros = np.zeros((len(obs), self.module.state_size))
            self.state = float_tensor(zeros, self.device)
        if len(self.state) != len(obs):
            since = f"{len(self.state)} environments since the last reset()"
            raise ValueError(f"obs of {len(obs)} environments after those of {since}")
        dist, self.state = self.module.advance(obs, self.state)
        return dist


def batch_shape(space: spaces.Space, obs: Any) -> tuple[int, ...]:
    """() for an observation of the space, (B,) for a batch of B.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(space, spaces.Dict):
        shapes = {batch_shape(part, obs[key]) for key, part in space.items()}
    elif isinstance(space, spaces.Tuple):
        shapes = {batch_shape(*pair) for pair in zip(space, obs, strict=True)}
    else:
        own, shape = space.shape or (), np.shape(obs)
        extra = len(shape) - len(own)
        shapes = {shape[:extra]} if extra in (0, 1) and shape[extra:] == own else set()
    if len(shapes) != 1:
        raise ValueError(f"neither an observation nor a batch of {space}")
    return shapes.pop()


def flatten(space: spaces.Space, obs: Any, size: int | None) -> NDArray:
    """An observation (`size` None) or a batch of `size`, as rows [B, d]."""
    if isinstance(space, spaces.Box):
        return np.asarray(obs).reshape(size or 1, -1)
    rows = [obs] if size is None else iterate(batch_space(space, size), obs)
    return np.stack([np.asarray(spaces.flatten(space, row)) for row in rows])


def _described(obs: Any) -> str:
    try:
        return f"of shape {np.shape(obs)}" if np.ndim(obs) else repr(obs)
    except ValueError:  # ragged
        return f"of type {type(obs).__name__}"


def load(run: Path, checkpoint_name: str, device: str) -> TrainedPolicy:
    """What `rlopt.load` promises."""
    cfg, state = read_run(run, checkpoint_name)
    cfg.device, cfg.env.num_envs = device, 1
    settings = env_settings(cfg, evaluation=True)
    own = {key: settings[key] for key in ("max_episode_steps", "kwargs", "wrappers")}
    make_own = partial(make_single_env, cfg.env.id, **own)
    single = single_spaces(make_own)
    if single is not None and cfg.env.backend in ("async", "envpool"):
        cfg.env.backend = "sync"  # without processes, and where EnvPool is not installed
    env = make_env(cfg)
    module = load_policy(cfg, env, state, checkpoint_name)
    num_masked = mask_size(env.single_observation_space)
    vector = env.unwrapped.single_observation_space, env.unwrapped.single_action_space
    env.close()
    about = cfg.env.id, state["env_steps"], device, num_masked
    return TrainedPolicy(module, *(single if alike(single, vector) else vector), *about, make_own)


Spaces = tuple[spaces.Space, spaces.Space]  # of observations and of actions


def single_spaces(make_own: Callable[..., gym.Env]) -> Spaces | None:
    """Spaces of one environment; None where Gymnasium can't make it: some are EnvPool's alone."""
    try:
        own = make_own()
    except Exception:  # whatever its constructor raises
        return None
    own.close()
    return own.observation_space, own.action_space


def alike(single: Spaces | None, vector: Spaces) -> TypeGuard[Spaces]:
    """Whether the spaces differ in nothing but their types of numbers.

    EnvPool's actions are float64 where Gymnasium's are float32.
    """
    if single is None:
        return False
    pairs = zip(single, vector, strict=True)
    return all(type(a) is type(b) and a.shape == b.shape for a, b in pairs)


def read_run(run: Path, checkpoint_name: str) -> tuple[Any, dict[str, Any]]:
    """A run's config, and its checkpoint `last` or `best`.

    Raises:
        ConfigError: it is no run folder, or the checkpoint is missing or damaged.
    """
    cfg = read_config(run)
    try:
        check.one_of(["last", "best"], checkpoint=checkpoint_name)
        state = checkpoint.load(run / "checkpoints" / f"{checkpoint_name}.pt")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return cfg, state


def load_policy(cfg: Any, env: VectorEnv, state: dict[str, Any], checkpoint_name: str) -> Any:
    """The policy of a run's config, with a checkpoint's parameters and statistics.

    Raises:
        ConfigError: the checkpoint is that of another policy.
    """
    policy = make_policy(cfg, env)
    try:
        policy.load_state_dict(state["policy"])
    except (KeyError, RuntimeError) as error:
        message = f"{checkpoint_name}.pt does not fit the run's policy: {one_line(error)}"
        raise ConfigError(message) from error
    return policy
