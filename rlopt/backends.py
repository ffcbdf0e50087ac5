"""The choice of a backend: Gymnasium's own environment, or an implementation that agrees with it.

`backends.json` lists, for every id that Gymnasium registers with a second implementation, what
benchmarks/backends.py found, and the registration and versions it was found for. docs/backends.md
is made from the same figures.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from rlopt import atari, envpool_env
from rlopt.pristine import is_unchanged

BACKENDS = ["auto", "vector_entry_point", "envpool", "sync", "async"]
PROBE_LIMIT = 2  # steps of an episode that is played to see whether a time limit is kept
PROBE_SEEDS = range(5)


@cache
def comparisons() -> dict[str, dict[str, Any]]:
    """`{backend: {id: {registration, compared: [{versions, agrees, finding}]}}}`."""
    return json.loads((Path(__file__).parent / "backends.json").read_text())


def registration(spec: EnvSpec) -> dict[str, Any]:
    """All that Gymnasium's registry says on what an environment is."""
    return {
        "entry_point": spec.entry_point,
        "vector_entry_point": spec.vector_entry_point,
        "kwargs": spec.kwargs,
        "max_episode_steps": spec.max_episode_steps,
        "additional_wrappers": [wrapper.name for wrapper in spec.additional_wrappers],
    }


def choose(
    spec: EnvSpec,
    kwargs: Mapping[str, Any],
    max_episode_steps: int | None,
    action_mask: bool,
    wrappers: Sequence[Any],
) -> str:
    """The backend of `env.backend=auto`.

    The vector version that a user registered, where it keeps what is asked for; else an
    implementation that was compared with Gymnasium's and agrees; else sync, which is Gymnasium's.
    What was compared has no `kwargs` and no masks in its info; wrappers are for sync.
    """
    if wrappers:
        return "sync"
    if _is_ale_vector(spec):  # what docs/environments.md describes; its limits are in frames
        return "vector_entry_point"
    if _is_users_vector(spec):
        vector_only = spec.entry_point is None
        suits = vector_only or vector_suits(spec, kwargs, max_episode_steps)
        return "vector_entry_point" if suits else "sync"
    if kwargs or action_mask:
        return "sync"
    if why_not("vector_entry_point", spec) is None:
        return "vector_entry_point"
    return "envpool" if why_not("envpool", spec) is None and envpool_env.has(spec.id) else "sync"


def _is_ale_vector(spec: EnvSpec) -> bool:
    own = (atari.ENTRY_POINT, atari.VECTOR_ENTRY_POINT)
    return atari.is_atari(spec.id) and (spec.entry_point, spec.vector_entry_point) == own


def _is_users_vector(spec: EnvSpec) -> bool:
    """Whether its vector version is not the one that Gymnasium registered under this id."""
    listed = comparisons()["vector_entry_point"].get(spec.id)
    recorded = listed["registration"]["vector_entry_point"] if listed else None
    return spec.vector_entry_point not in (None, recorded)


def why_not(backend: str, spec: EnvSpec) -> str | None:
    """Why an implementation may not stand in for what is registered; None: it may."""
    listed = comparisons()[backend].get(spec.id)
    if listed is None:
        return "it has not been compared with Gymnasium's"
    changed = _changed(spec, listed["registration"])
    if changed is not None:
        return changed
    matching = [row for row in listed["compared"] if _are_installed(row["versions"])]
    if not matching:
        compared = " or ".join(_named(row["versions"]) for row in listed["compared"])
        return f"it was compared with Gymnasium's for {compared} only"
    if not any(row["agrees"] for row in matching):
        finding = matching[0]["finding"]
        return (
            f"it was {finding}" if finding.startswith("not compared") else f"it differs: {finding}"
        )
    return None


def _changed(spec: EnvSpec, recorded: dict[str, Any]) -> str | None:
    """How an id's registration, or its class, differs from Gymnasium's own; None: it doesn't."""
    for name, value in registration(spec).items():
        if value != recorded[name]:
            return (
                f"{spec.id} is registered with {name}={value}, by Gymnasium with {recorded[name]}"
            )
    entry_points = [spec.entry_point, spec.vector_entry_point]
    changed = [x for x in entry_points if isinstance(x, str) and not is_unchanged(x)]
    return f"{changed[0]} was changed after it was imported" if changed else None


def _are_installed(versions: dict[str, str]) -> bool:
    """Whether of these packages none is installed in another version."""
    return all(_version(name) in (None, version) for name, version in versions.items())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def require_registered(spec: EnvSpec) -> None:
    """Refuse EnvPool for a known id that is registered with other settings than Gymnasium's.

    Raises:
        ValueError: EnvPool's environment has Gymnasium's settings.
    """
    listed = comparisons()["envpool"].get(spec.id)
    if listed is not None and spec.kwargs != listed["registration"]["kwargs"]:
        raise ValueError(
            f"backend envpool can't have the kwargs {spec.kwargs} that {spec.id} is registered "
            "with, use env.backend=sync"
        )


# A user's own vector version


def vector_suits(spec: EnvSpec, kwargs: Mapping[str, Any], max_episode_steps: int | None) -> bool:
    """Whether the registered vector version can be made, in NEXT_STEP mode, with the time limit."""
    limit = max_episode_steps or spec.max_episode_steps
    options = {**kwargs, **({"max_episode_steps": PROBE_LIMIT} if limit else {})}
    try:
        env = gym.make_vec(spec, 2, vectorization_mode="vector_entry_point", **options)
    except Exception:  # whatever its constructor raises; sync tells what is wrong with the rest
        return False
    next_step = env.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP
    suits = next_step and (limit is None or _keeps_limit(env))
    env.close()
    return suits


def _keeps_limit(env: VectorEnv) -> bool:
    """Whether an episode is truncated at PROBE_LIMIT, and not before."""
    for seed in PROBE_SEEDS:
        env.reset(seed=seed)
        env.action_space.seed(seed)
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(PROBE_LIMIT)]
        going = ~ends[0][0]  # not terminated before the limit
        if ends[0][1].any():
            return False
        if going.any():
            return bool(ends[-1][1][going].all())
    return False  # no episode came as far


def require_limit(spec: EnvSpec, options: Mapping[str, Any]) -> None:
    """Refuse a vector version that does not keep the time limit.

    Raises:
        ValueError: it drops the limit that the registration or the config asks for.
    """
    kwargs = {key: value for key, value in options.items() if key != "max_episode_steps"}
    limit = options.get("max_episode_steps", spec.max_episode_steps)
    if limit is None or not _is_users_vector(spec):
        return
    if not vector_suits(spec, kwargs, limit) and vector_suits(_without_limit(spec), kwargs, None):
        raise ValueError(
            f"backend vector_entry_point: the vector version of {spec.id} does not keep a time "
            f"limit of {limit} steps, use env.backend=sync"
        )


def _without_limit(spec: EnvSpec) -> EnvSpec:
    return EnvSpec(
        spec.id,
        spec.entry_point,
        kwargs=spec.kwargs,
        vector_entry_point=spec.vector_entry_point,
    )


# What the log and messages say


def hint(spec: EnvSpec) -> str:
    """The end of a message on what Gymnasium can't make, where EnvPool has an id of that name."""
    return f"; EnvPool has a {spec.id}, use env.backend=envpool" if envpool_env.has(spec.id) else ""


def remark(spec: EnvSpec, backend: str) -> str | None:
    """A line on the implementation that trains, where it differs from Gymnasium's or may."""
    if backend not in ("envpool", "vector_entry_point"):
        return _remark_on_gymnasium(spec)
    if backend == "vector_entry_point" and _is_users_vector(spec):
        return None
    reason = why_not(backend, spec)
    name = "EnvPool's" if backend == "envpool" else "the vector version of"
    return None if reason is None else f"{name} {spec.id} is not Gymnasium's: {reason}"


def _remark_on_gymnasium(spec: EnvSpec) -> str | None:
    """Why a faster implementation that agrees for another registration or version is not taken."""
    for backend, ids in comparisons().items():
        listed = ids.get(spec.id)
        if listed is None or not any(row["agrees"] for row in listed["compared"]):
            continue
        reason = why_not(backend, spec)
        if reason is not None:
            name = "EnvPool's" if backend == "envpool" else "the vector version of"
            return f"{name} {spec.id} is not taken: {reason}"
    return None
