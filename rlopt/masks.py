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
from rlopt.observations import FlatBox, original

KEY = "action_mask"


class MaskedBox(FlatBox):
    """A flat Box whose last `mask_size` entries say which actions are allowed, 1 or 0 for each."""

    def __init__(self, features: spaces.Box, mask_size: int) -> None:
        low = np.concatenate([features.low, np.zeros(mask_size, np.int8)])
        high = np.concatenate([features.high, np.ones(mask_size, np.int8)])
        both = spaces.Tuple([original(features), spaces.MultiBinary(mask_size)])
        super().__init__(spaces.Box(low, high, dtype=low.dtype), both)
        self.features = features
        self.mask_size = mask_size


def mask_size(space: spaces.Space) -> int:
    """How many entries at the end of an observation are an action mask."""
    return space.mask_size if isinstance(space, MaskedBox) else 0


def unmasked(space: spaces.Space) -> spaces.Space:
    """The observation without its mask."""
    return space.features if isinstance(space, MaskedBox) else space


def mask_column(space: spaces.Space) -> int | None:
    """Where the mask starts in the flattened observation; None where it is no key of them."""
    if not isinstance(space, spaces.Dict) or KEY not in space.spaces:
        return None
    names = list(space)
    return sum(spaces.flatdim(space[name]) for name in names[: names.index(KEY)])


def flat_mask(mask: Any, size: int) -> NDArray[np.int8]:
    """A mask as a row of 1 and 0, [size].

    Args:
        mask: an array, list or tuple; of MultiDiscrete actions also one array for each entry.
        size: choices of all entries of the action together.

    Raises:
        ValueError: the mask has another number of entries, or holds something else than numbers.
    """
    parts = mask if isinstance(mask, list | tuple) else [mask]
    try:
        flat = np.concatenate([np.ravel(part) for part in parts]) != 0
    except (TypeError, ValueError):
        flat = np.zeros(0, bool)
    if len(flat) != size:
        shape = isinstance(mask, np.ndarray)
        found = f"one of shape {np.shape(mask)}" if shape else f"{mask!r:.100}"
        raise ValueError(f"an {KEY} of shape ({size},) is due, got {found}")
    return flat.astype(np.int8)


def mask_last(space: spaces.Space, flat: NDArray, size: int, mask: Any) -> NDArray:
    """Flattened observations [N, d] of a space, with masks of `size` entries behind the rest.

    They are the key of the space, else `mask` [N, size].

    Raises:
        ValueError: `mask` is needed and of another shape.
    """
    column = mask_column(space)
    if column is not None:
        own = np.s_[column : column + size]
        return np.concatenate([np.delete(flat, own, axis=1), flat[:, own]], axis=1)
    if np.shape(mask) != (len(flat), size):
        found = "none" if mask is None else f"one of shape {np.shape(mask)[1:]}"
        raise ValueError(f"an {KEY} of shape ({size},) is due, got {found}")
    return np.concatenate([flat, mask], axis=1)


class ActionMask(VectorWrapper):
    """Puts the observation's key `action_mask`, or else that of `info`, last in the observation.

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
        action, flat = env.single_action_space, env.single_observation_space
        sizes = categories(action)
        if not sizes:
            raise ValueError(f"action masks are for Discrete and MultiDiscrete, not for {action}")
        self.size = sum(sizes)
        self.starts = np.cumsum([0, *sizes[:-1]])
        self.space = space
        assert isinstance(flat, spaces.Box)
        low, high, rest = flat.low, flat.high, space
        if mask_column(space) is not None:
            assert isinstance(space, spaces.Dict)
            rest = spaces.Dict({key: part for key, part in space.items() if key != KEY})
            found = spaces.flatdim(space[KEY])
            if found != self.size:
                needs = f"{action} needs {self.size}"
                raise ValueError(f"the observation's {KEY} has {found} entries, {needs}")
            low, high = (mask_last(space, x[None], self.size, None)[0] for x in (low, high))
            low, high = low[: -self.size], high[: -self.size]
            if not len(low):
                raise ValueError(f"the observation has nothing beside its {KEY}")
        features = FlatBox(spaces.Box(low, high, dtype=low.dtype), rest)
        self.single_observation_space = MaskedBox(features, self.size)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, **kwargs: Any) -> tuple[NDArray, dict[str, Any]]:
        """Start a fresh episode in every environment."""
        obs, info = self.env.reset(**kwargs)
        return self._mask_last("reset", obs, info, np.zeros(self.num_envs, bool)), info

    def step(self, actions: Any) -> tuple[NDArray, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Step every environment."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        obs = self._mask_last("step", obs, info, terminated | truncated)
        return obs, reward, terminated, truncated, info

    def _mask_last(self, call: str, flat: Any, info: dict[str, Any], done: NDArray) -> NDArray:
        """Observations [N, d] with masks behind their features; at an episode's end any will do.

        Raises:
            BrokenEnvError: no action is allowed where there is one to take.
        """
        none = np.zeros((self.num_envs, self.size), np.int8) if done.all() else None
        try:
            obs = mask_last(self.space, flat, self.size, info.get(KEY, none))
        except ValueError as error:
            where = f"env={env_id(self.env)}: {call}: {error}"
            raise BrokenEnvError(f"{where} in info, where env.action_mask=true looks") from error
        allowed = np.logical_or.reduceat(obs[:, -self.size :] != 0, self.starts, axis=1)
        stuck = np.flatnonzero(~allowed.all(axis=1) & ~done)
        if len(stuck):
            who = f"env={env_id(self.env)}: {call}: environment {stuck[0]}"
            raise BrokenEnvError(f"{who} gave an {KEY} that allows no action")
        return obs.astype(self.single_observation_space.dtype, copy=False)
