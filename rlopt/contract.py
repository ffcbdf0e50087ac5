"""What a vector environment takes from a single environment, and nothing else of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.async_vector_env import _async_worker

from rlopt.action_spaces import categories
from rlopt.faults import NUMBERS, MisfitError
from rlopt.masks import KEY, flat_mask
from rlopt.seeding import own_spaces, seed_process, seed_spaces


class Contract(gym.Wrapper):
    """Passes on numbers as rewards, flags as ends, and of `info` the action mask alone.

    What nobody reads can't fail: Gymnasium's vector environments stack every entry of `info`, and
    entries that differ in shape or type between copies are an error there. A reset with a seed
    seeds the spaces, too, and in a process of its own the global generators.

    Args:
        env: one environment, all its wrappers included.
        masked: keep `info["action_mask"]`, flat.
        backend: `sync`, or `async` where the environment is alone in its process.
    """

    def __init__(self, env: gym.Env, *, masked: bool, backend: str) -> None:
        super().__init__(env)
        own_spaces(env)
        self.masked = masked
        self.own_process = backend == "async"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is not None:
            seed_spaces(self.env, seed)
            if self.own_process:
                seed_process(seed)
        result = self.env.reset(seed=seed, options=options)
        obs, info = _unpacked(result, "obs", "info")
        return obs, self._mask(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; the environment may keep the action, which is a copy of its own."""
        result = self.env.step(_copied(action))
        obs, reward, terminated, truncated, info = _unpacked(
            result, "obs", "reward", "terminated", "truncated", "info"
        )
        return (
            obs,
            _number("reward", reward),
            bool(_number("terminated", terminated)),
            bool(_number("truncated", truncated)),
            self._mask(info),
        )

    def _mask(self, info: Any) -> dict[str, Any]:
        """The action mask of an `info`, or nothing where it has none."""
        mask = info.get(KEY) if self.masked and isinstance(info, Mapping) else None
        if mask is None:
            return {}
        try:
            return {KEY: flat_mask(mask, sum(categories(self.action_space)))}
        except ValueError as error:
            raise MisfitError(f"gave the wrong mask in info: {error}") from error


def _copied(action: Any) -> Any:
    """The action in memory of its own: the vector environment's is a view of all of them."""
    if isinstance(action, np.ndarray):
        return action.copy()
    return copy.deepcopy(action) if isinstance(action, tuple | dict) else action


def _unpacked(result: Any, *names: str) -> Sequence[Any]:
    if not isinstance(result, tuple | list) or len(result) != len(names):
        due = f"({', '.join(names)})"
        raise MisfitError(f"returned {result!r:.100}, where {due} is due")
    return result


def _number(name: str, x: Any) -> float:
    """One number, also as an array of one entry.

    Raises:
        MisfitError: it is none, or several.
    """
    if isinstance(x, int | float):
        return x
    try:
        array = np.asarray(x)
    except (TypeError, ValueError):  # ragged
        raise MisfitError(f"returned the {name} {x!r:.100}, where one number is due") from None
    if array.size != 1 or array.dtype.kind not in NUMBERS:
        shape = f" of shape {array.shape}" if array.ndim else ""
        raise MisfitError(f"returned the {name} {x!r:.100}{shape}, where one number is due")
    return array.item()


def process_options(backend: str, num_envs: int) -> dict[str, Any]:
    """Keywords of Gymnasium's vector environment: seeds for the processes of `async`.

    Forked processes inherit one random state: a constructor that draws would draw the same numbers
    in each.
    """
    if backend != "async":
        return {}
    seeds = np.random.randint(2**31, size=num_envs).tolist()
    return {"worker": functools.partial(_seeded_worker, seeds)}


def _seeded_worker(seeds: Sequence[int], index: int, *rest: Any) -> None:
    """Gymnasium's own worker, which has no public name, in a process that is seeded first."""
    seed_process(seeds[index])
    _async_worker(index, *rest)
