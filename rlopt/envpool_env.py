"""EnvPool's environments behind Gymnasium's vector interface."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

# EnvPool casts the bounds of its own boxes.
warnings.filterwarnings("ignore", message=".*precision lowered by casting")


def is_installed() -> bool:
    """Whether EnvPool can be imported."""
    return importlib.util.find_spec("envpool") is not None


def has(env_id: str) -> bool:
    """Whether EnvPool is installed and has an environment of this id."""
    if not is_installed():
        return False
    import envpool

    return env_id in envpool.list_all_envs()


def make(spec: EnvSpec, num_envs: int, options: dict[str, Any]) -> VectorEnv:
    """EnvPool's environment of a registered id, with the registered time limit.

    Args:
        spec: the registration.
        num_envs: number of copies.
        options: EnvPool's settings of the environment; `max_episode_steps` replaces the registered
            time limit.

    Raises:
        ValueError: EnvPool is missing, does not have the id, or can't have what is asked for.
    """
    if not is_installed():
        raise ValueError("backend envpool needs a package: pip install -e '.[envpool]'")
    if not has(spec.id):
        raise ValueError(f"backend envpool: EnvPool has no {spec.id}, use env.backend=auto")
    if spec.additional_wrappers:
        names = ", ".join(wrapper.name for wrapper in spec.additional_wrappers)
        raise ValueError(
            f"backend envpool can't have the wrappers of {spec.id}'s registration ({names}), "
            "use env.backend=sync"
        )
    settings = dict(options)
    limit = settings.pop("max_episode_steps", spec.max_episode_steps)
    try:
        return EnvPoolVectorEnv(spec.id, num_envs, limit, settings)
    except Exception as error:  # whatever EnvPool's constructors raise
        raise ValueError(f"kwargs {options} does not suit EnvPool's {spec.id}: {error}") from error


class EnvPoolVectorEnv(VectorEnv):
    """A pool of environments in NEXT_STEP autoreset mode.

    The time limit is kept here as Gymnasium's `TimeLimit` keeps it. EnvPool itself drops it for
    some ids, and where an episode ends at its limit it does not say whether it was terminated too.
    Only a new pool takes a seed, so `reset` with a seed makes one.
    """

    def __init__(
        self, env_id: str, num_envs: int, limit: int | None, settings: dict[str, Any]
    ) -> None:
        import envpool

        if limit is not None:  # the pool's own limit must not come first
            settings = {**settings, "max_episode_steps": limit + 1}
        self._make = functools.partial(
            envpool.make_gymnasium, env_id, num_envs=num_envs, **settings
        )
        self._pool = self._make()
        self._limit = limit
        self._elapsed = np.zeros(num_envs, np.int64)  # steps of the episode
        self._done = np.zeros(num_envs, bool)
        self._cut = np.zeros(num_envs, bool)  # at the limit: the pool would go on
        self.spec = EnvSpec(env_id)
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = self._pool.single_observation_space
        self.single_action_space = self._pool.single_action_space
        for space in (self.single_observation_space, self.single_action_space):
            if not isinstance(space, gym.Space):
                raise ValueError(f"its spaces are not Gymnasium's: {space}")
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start a fresh episode in every environment."""
        if seed is not None:
            self._pool.close()
            self._pool = self._make(seed=seed)
        for array in (self._elapsed, self._done, self._cut):
            array[:] = 0
        return self._pool.reset()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment; one whose episode has ended starts the next."""
        if self._cut.any():
            obs, reward, terminated, truncated, info = self._restart_cut(actions)
        else:
            obs, reward, terminated, truncated, info = self._pool.step(actions)
        self._elapsed = np.where(self._done, 0, self._elapsed + 1)
        if self._limit is not None:
            at_limit = self._elapsed >= self._limit
            self._cut = at_limit & ~(terminated | truncated)
            truncated = truncated | at_limit
        self._done = terminated | truncated
        return obs, reward, terminated, truncated, info

    def _restart_cut(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Reset the environments at their limit, and step the others."""
        cut, zeros = self._cut, np.zeros(self._cut.sum())
        ids = np.arange(self.num_envs, dtype=np.int32)
        obs, info = self._pool.reset(ids[cut])
        fresh = (obs, zeros, zeros.astype(bool), zeros.astype(bool), info)
        if cut.all():
            return fresh
        return _merged(fresh, self._pool.step(actions[~cut], ids[~cut]), cut)

    def close_extras(self, **kwargs: Any) -> None:
        """Stop EnvPool's threads."""
        self._pool.close()


def _merged(first: Any, second: Any, where: NDArray) -> Any:
    """Rows of `first` where `where` [N] is True, rows of `second` elsewhere."""
    if isinstance(first, tuple):
        return tuple(_merged(a, b, where) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict):
        return {key: _merged(first[key], second[key], where) for key in first}
    rows = np.empty((len(where), *second.shape[1:]), second.dtype)
    rows[where], rows[~where] = first, second
    return rows
