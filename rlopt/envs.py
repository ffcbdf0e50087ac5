"""Vector environments for any Gymnasium id.

All backends run in Gymnasium's NEXT_STEP autoreset mode and hand out flat Box observations.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import FlattenObservation

from rlopt import atari, backends, check, envpool_env
from rlopt.action_spaces import leaves
from rlopt.backends import BACKENDS
from rlopt.contract import Contract, process_options
from rlopt.faults import RAISED
from rlopt.masks import ActionMask, mask_column
from rlopt.observations import FlatBox

Wrapper = Callable[[gym.Env], gym.Env]


class WrapperError(ValueError):
    """A wrapper can't be made around an environment; the message is whole."""


def find_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """The Gymnasium spec of an id; `module:id` imports the module first.

    Raises:
        ValueError: no such id (with the nearest ones), or its module can't be imported.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if atari.is_atari(name):
            atari.register()
        present = atari.present_name(name)
        if present is None:
            return gym.spec(name)
    except gym.error.Error as error:
        matches = difflib.get_close_matches(name, gym.registry.keys(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(matches)}?" if matches else "gymnasium.registry has all"
        message = f"env={env_id}: no environment of this id is registered; {hint}"
        raise ValueError(message) from error
    except RAISED as error:  # whatever the module raises
        what = "" if atari.is_atari(name) else f": importing {module} failed:"
        raise ValueError(f"env={env_id}{what} {error}") from error
    raise ValueError(f"env={env_id} is an old name: write env={present}")


def make_vector_env(
    env_id: str,
    *,
    num_envs: int,
    backend: str = "auto",
    max_episode_steps: int | None = None,
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    action_mask: bool = False,
    wrappers: Sequence[Wrapper] = (),
) -> VectorEnv:
    """A vector environment of `num_envs` copies of any registered id.

    Args:
        env_id: any registered Gymnasium id.
        num_envs: number of copies.
        backend: `auto`, `vector_entry_point` (the environment's own), `envpool`, `sync` or `async`.
        max_episode_steps: time limit in place of the registered one, or None.
        kwargs: keyword arguments of the environment.
        action_mask: `info["action_mask"]` says which actions are allowed.
        wrappers: around each single environment, the first innermost; sync or async then.

    Raises:
        ValueError: unknown id, unsupported space or backend, or a missing package (with what to
        install).
    """
    check.whole(num_envs=num_envs)
    check.one_of(BACKENDS, backend=backend)
    check.flag(action_mask=action_mask)
    options = dict(kwargs)
    if max_episode_steps is not None:
        check.whole(max_episode_steps=max_episode_steps)
        options["max_episode_steps"] = max_episode_steps
    spec = find_spec(env_id)
    if backend == "auto":
        backend = fastest_backend(env_id, kwargs, action_mask, wrappers, max_episode_steps)
    env = _make(spec, num_envs, backend, options, wrappers, action_mask)
    if env.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"env={env_id}: backend {backend} does not run in NEXT_STEP autoreset mode"
        )
    _check_spaces(env_id, env)
    try:
        return flat_observations(env, action_mask)
    except ValueError as error:
        raise ValueError(f"env={env_id}: {error}") from error


def flat_observations(env: VectorEnv, action_mask: bool) -> VectorEnv:
    """The environment with observations as a Box of shape [d]; Discrete becomes one-hot.

    A mask from `info` (`action_mask`), or from an observation's key of that name, comes last.
    """
    space = env.single_observation_space
    is_flat = isinstance(space, spaces.Box) and len(space.shape) == 1
    flat = env if is_flat else FlattenObservation(env)
    if not is_flat:  # networks ask what a row was
        box = flat.single_observation_space
        assert isinstance(box, spaces.Box)
        flat.single_observation_space = FlatBox(box, space)
    masked = action_mask or mask_column(space) is not None
    return ActionMask(flat, space) if masked else flat


def make_single_env(
    env_id: str,
    *,
    max_episode_steps: int | None,
    kwargs: Mapping[str, Any],
    wrappers: Sequence[Wrapper],
    **render: Any,
) -> gym.Env:
    """One environment, as those of `make_vector_env` are before observations are flattened.

    `render_mode="rgb_array"` for one that can be drawn.
    """
    options = {**kwargs, **({"max_episode_steps": max_episode_steps} if max_episode_steps else {})}
    spec = find_spec(env_id)
    options, wrappers = _single(spec, options, wrappers)
    env = gym.make(spec, **options, **render)
    return functools.reduce(lambda env, wrapper: wrapper(env), wrappers, env)


def time_limit(env_id: str, max_episode_steps: int | None, kwargs: Mapping[str, Any]) -> int | None:
    """Steps after which an episode is truncated: the given limit, else the registered one."""
    spec = find_spec(env_id)
    if max_episode_steps is not None:
        return max_episode_steps
    return atari.time_limit(kwargs) if atari.is_atari(spec.id) else spec.max_episode_steps


def _single(
    spec: gym.envs.registration.EnvSpec, options: dict[str, Any], wrappers: Sequence[Wrapper]
) -> tuple[dict[str, Any], list[Wrapper]]:
    """Keyword arguments of `gym.make`, and all wrappers around it."""
    if not atari.is_atari(spec.id):
        return options, [*wrappers]
    options, preprocess = atari.single_options(options)
    return options, [preprocess, *wrappers]


def fastest_backend(
    env_id: str,
    kwargs: Mapping[str, Any],
    action_mask: bool = False,
    wrappers: Sequence[Any] = (),
    max_episode_steps: int | None = None,
) -> str:
    """The backend of `env.backend=auto`: the fastest that is the named environment."""
    spec = find_spec(env_id)
    return backends.choose(spec, kwargs, max_episode_steps, action_mask, wrappers)


def _make(
    spec: gym.envs.registration.EnvSpec,
    num_envs: int,
    backend: str,
    options: dict[str, Any],
    wrappers: Sequence[Any],
    action_mask: bool,
) -> VectorEnv:
    if wrappers and backend in ("envpool", "vector_entry_point"):
        raise ValueError(f"backend {backend} can't have wrappers, use env.backend=sync")
    if backend == "envpool":
        backends.require_registered(spec)
        return envpool_env.make(spec, num_envs, options)
    if backend == "vector_entry_point" and spec.vector_entry_point is None:
        raise ValueError(f"backend vector_entry_point: {spec.id} has none, use env.backend=auto")
    vector_kwargs: dict[str, Any] = {}
    if backend in ("sync", "async"):
        options, wrappers = _single(spec, options, wrappers)
        wrappers += [functools.partial(Contract, masked=action_mask, backend=backend)]
        vector_kwargs = process_options(backend, num_envs)
    elif atari.is_atari(spec.id):
        options = atari.vector_options(options)
    else:
        backends.require_limit(spec, options)
    try:
        return gym.make_vec(
            spec,
            num_envs,
            vectorization_mode=backend,
            vector_kwargs=vector_kwargs,
            wrappers=wrappers,
            **options,
        )
    except WrapperError:
        raise
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        by_hand = backends.hint(spec)
        what = f"needs a package that is not installed: {error}{by_hand}"
        raise ValueError(f"env={spec.id} {what}") from error
    except TypeError as error:
        raise ValueError(f"kwargs {options} does not suit {spec.id}: {error}") from error
    except RAISED as error:  # whatever its constructor raises
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"env={spec.id} with {options} can't be made: {what}") from error


def _check_spaces(env_id: str, env: VectorEnv) -> None:
    action, obs = env.single_action_space, env.single_observation_space
    for name, space in (("actions", action), ("observations", obs)):
        try:
            kinds = list(leaves(space))
        except ValueError as error:
            raise ValueError(f"env={env_id}: {name} {error}") from error
        if spaces.flatdim(space) == 0:
            raise ValueError(f"env={env_id}: {name} {space} have no entries")
        boxes = [leaf for leaf in kinds if isinstance(leaf, spaces.Box)]
        whole = [box for box in boxes if not np.issubdtype(box.dtype, np.floating)]
        if name == "actions" and whole:
            raise ValueError(f"env={env_id}: {name} {whole[0]} are not supported; a real Box is")


def derive_seed(seed: int, stream: int) -> int:
    """A seed for one of a run's random streams, unlike those of other seeds and streams."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0] >> 1)
