"""Action masks: which actions an environment allows, as the last entries of its observation."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlopt.action_spaces import categories
from rlopt.faults import BrokenEnvError, env_id

KEY = "action_mask"


class MaskedBox(spaces.Box):
    """A flat Box whose last `mask_size` entries say which actions are allowed, 1 or 0 for each."""

    def __init__(self, features: spaces.Box, mask_size: int) -> None:
        low = np.concatenate([features.low, np.zeros(mask_size, np.int8)])
        high = np.concatenate([features.high, np.ones(mask_size, np.int8)])
        super().__init__(low, high, dtype=low.dtype)
        self.mask_size = mask_size


def mask_size(space: spaces.Space) -> int:
    """How many entries at the end of an observation are an action mask."""
    return space.mask_size if isinstance(space, MaskedBox) else 0


class ActionMask(VectorWrapper):
    """Puts `info["action_mask"]`, or the observation's key of that name, last in the observation.

    Of Discrete(n) actions the mask has n entries, of MultiDiscrete as many as all choices together,
    one entry of the action after the other.

    Args:
        env: with flat observations.
        space: of the observations before they were flattened.

    Raises:
        ValueError: the actions can't be masked, or the key does not fit them.
    """

    def __init__(self, env: VectorEnv, space: spaces.Space) -> None:
        super().__init__(env)
        action = env.single_action_space
        sizes = categories(action)
        if not sizes:
            raise ValueError(f"action masks are for Discrete and MultiDiscrete, not for {action}")
        self.size = sum(sizes)
        self.starts = np.cumsum([0, *sizes[:-1]])
        flat: Any = env.single_observation_space
        self.column: int | None = None  # of the mask in the flattened observation
        if has_mask(space):
            assert isinstance(space, spaces.Dict)
            names = list(space)
            before = names[: names.index(KEY)]
            self.column = sum(spaces.flatdim(space[name]) for name in before)
            found = spaces.flatdim(space[KEY])
            if found != self.size:
                raise ValueError(f"the observation's {KEY} has {found} entries, {action} needs "
                                 f"{self.size}")  # fmt: skip
            low, high = (self._without_mask(x[None])[0] for x in (flat.low, flat.high))
            flat = spaces.Box(low, high, dtype=flat.dtype)
        self.single_observation_space = MaskedBox(flat, self.size)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def _without_mask(self, x: NDArray) -> NDArray:
        assert self.column is not None
        return np.delete(x, np.s_[self.column : self.column + self.size], axis=1)

    def reset(self, **kwargs: Any) -> tuple[NDArray, dict[str, Any]]:
        """Start a fresh episode in every environment."""
        obs, info = self.env.reset(**kwargs)
        return self._mask_last("reset", obs, info, np.zeros(self.num_envs, bool)), info

    def step(self, actions: Any) -> tuple[NDArray, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Step every environment."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        obs = self._mask_last("step", obs, info, terminated | truncated)
        return obs, reward, terminated, truncated, info

    def _mask_last(self, call: str, obs: Any, info: dict[str, Any], done: NDArray) -> NDArray:
        """Observations [N, d] with masks [N, n] behind their features.

        Raises:
            BrokenEnvError: no action is allowed where there is one to take.
        """
        if self.column is None:
            absent = np.zeros((self.num_envs, self.size)) if done.all() else None
            mask, features = np.asarray(info.get(KEY, absent)), obs
        else:
            mask, features = obs[:, self.column :][:, : self.size], self._without_mask(obs)
        where = f"env={env_id(self.env)}: {call} gave"
        if mask.shape != (self.num_envs, self.size):
            found = f"one of shape {mask.shape[1:]}" if mask.shape else "none"
            raise BrokenEnvError(
                f'{where} {found} as info["{KEY}"], where masks of '
                f"{self.env.single_action_space} have shape ({self.size},)"
            )
        forbidden = ~np.logical_or.reduceat(mask != 0, self.starts, axis=1).all(axis=1) & ~done
        if forbidden.any():
            index = np.flatnonzero(forbidden)[0]
            raise BrokenEnvError(f"{where} environment {index} a mask that allows no action")
        dtype = self.single_observation_space.dtype
        return np.concatenate([features, mask != 0], axis=1, dtype=dtype)


def has_mask(space: spaces.Space) -> bool:
    """Whether the observations have a key that says which actions are allowed."""
    return isinstance(space, spaces.Dict) and KEY in space.spaces
