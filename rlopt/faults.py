"""Environments that misbehave: every call ends in arrays of the right shape, or in one line.

The line names the environment's id, its index where that can be known, and the place in its code.
"""

from __future__ import annotations

import functools
import re
import time
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

NUMBERS = "biuf"  # kinds of dtype: bool, int, unsigned, float
SYNC_LOOPS = (SyncVectorEnv.reset.__code__, SyncVectorEnv.step.__code__)


# What an environment's code may raise: with `sys.exit` it does not end the run as if it were done.
RAISED = (Exception, SystemExit)


class BrokenEnvError(RuntimeError):
    """An environment raised, died, or returned what its spaces do not allow."""


class MisfitError(ValueError):
    """What a single environment returned does not fit; the message goes behind the call's name."""


def reset(env: VectorEnv, seed: int | None) -> NDArray:
    """The observations [N, d] of fresh episodes, copied.

    Raises:
        BrokenEnvError: the environment's fault.
    """
    try:
        obs = np.array(env.reset(seed=seed)[0])
    except BrokenEnvError:
        raise
    except RAISED as error:
        raise BrokenEnvError(_describe(env, "reset", error)) from error
    _check(env, "reset", obs=obs)
    return obs


def step(env: VectorEnv, action: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Observations [N, d], rewards, terminations and truncations [N], copied.

    Raises:
        BrokenEnvError: the environment's fault.
    """
    try:
        # copied: an environment may write its next step into the same buffers
        obs, reward, terminated, truncated = map(np.array, env.step(action)[:4])
    except BrokenEnvError:
        raise
    except RAISED as error:
        raise BrokenEnvError(_describe(env, "step", error)) from error
    _check(env, "step", obs=obs, reward=reward, terminated=terminated, truncated=truncated)
    return obs, reward, terminated, truncated


def _check(env: VectorEnv, call: str, **arrays: NDArray) -> None:
    for name, x in arrays.items():
        shape = env.observation_space.shape if name == "obs" else (env.num_envs,)
        kinds = NUMBERS if name in ("obs", "reward") else "b"
        if x.shape != shape or x.dtype.kind not in kinds:
            raise BrokenEnvError(
                f"env={env_id(env)}: {call} returned {name} of shape {x.shape} and type {x.dtype}, "
                f"where {'numbers' if kinds == NUMBERS else 'bool'} of shape {shape} are due"
            )


def env_id(env: VectorEnv) -> str:
    """The registered id, or the class of an environment without one."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _describe(env: VectorEnv, call: str, error: BaseException) -> str:
    index, fault = _blame(env.unwrapped, call, error)
    which = "" if index is None else f" environment {index}:"
    return " ".join(f"env={env_id(env)}:{which} {fault}".split())


def _blame(env: Any, call: str, error: BaseException) -> tuple[int | None, str]:
    """Index of the environment at fault, where it is known, and what it did.

    Gymnasium's exceptions do not say which environment they come from; the frames that they passed
    through do.
    """
    if isinstance(env, AsyncVectorEnv) and isinstance(error, EOFError | ConnectionError):
        return _dead_worker(env)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame, inner in pairwise([*frames, None]):
        assert frame is not None
        if frame.f_code is AsyncVectorEnv._raise_if_errors.__code__:
            index, kind, value, trace = (
                frame.f_locals[name] for name in ("index", "exctype", "value", "trace")
            )
            places = re.findall(r'File "([^"]+)", line (\d+)', trace)
            return index, _raised(call, kind, value, *places[-1])
        if frame.f_code in SYNC_LOOPS:
            if inner is not None and inner.f_code.co_filename == functools.__file__:
                return _misfit(env, call)  # in `concatenate`, after the loop
            return frame.f_locals.get("i"), _raised(call, type(error), error, *_place(error))
    return None, _raised(call, type(error), error, *_place(error))


def _raised(call: str, kind: type, error: Any, file: str, line: Any) -> str:
    if issubclass(kind, MisfitError):
        return f"{call} {error}"
    return f"{call} raised {kind.__name__}: {error} ({Path(file).name}, line {line})"


def _place(error: BaseException) -> tuple[str, int | None]:
    """Where it was raised: the user needs no more to find it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename, last.lineno


def _misfit(env: Any, call: str) -> tuple[int | None, str]:
    """The environment whose observation can't be stacked with the others."""
    space = env.single_observation_space
    for i, obs in enumerate(env._env_obs):
        try:
            x = np.asarray(obs)
        except ValueError:  # ragged
            return i, f"{call} returned the observation {obs!r:.100}, which is not in {space}"
        if x.shape != space.shape or x.dtype.kind not in NUMBERS:
            what = f"an observation of shape {x.shape} and type {x.dtype}"
            return i, f"{call} returned {what}, which is not in {space}"
    return None, f"{call} returned observations that are not in {space}"


def _dead_worker(env: AsyncVectorEnv) -> tuple[int | None, str]:
    time.sleep(0.2)  # its pipe closes a moment before it has an exit code
    codes = [process.exitcode for process in env.processes]
    for process in env.processes:
        process.terminate()
    env.closed = True  # to close it would wait for the dead one's answer
    for i, code in enumerate(codes):
        if code is not None:
            return i, f"its process has ended, exit code {code}"
    return None, "the process of an environment has ended"
