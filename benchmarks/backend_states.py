"""Put Gymnasium's environment into the state that another implementation's observation shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# First joint positions that the observation leaves out: where the body is on the plane.
HIDDEN_POSITIONS = {
    "HalfCheetahEnv": 1,
    "HopperEnv": 1,
    "Walker2dEnv": 1,
    "AntEnv": 2,
    "HumanoidEnv": 2,
    "HumanoidStandupEnv": 2,
    "SwimmerEnv": 2,
    "InvertedPendulumEnv": 0,
}
CLIPPED_SPEED = 10.0  # of Hopper, Walker2d and InvertedDoublePendulum, in observations


def can_set(env: Any) -> bool:
    """Whether `set_state` knows this environment (unwrapped)."""
    name = type(env).__name__
    return name in HIDDEN_POSITIONS or name in CLASSIC or name in JOINTED


def set_state(env: Any, obs: NDArray, fresh: bool) -> None:
    """Set the state of `env` (unwrapped) to what `obs` [d] shows; the rest stays as it is.

    Args:
        env: an environment for which `can_set` holds.
        obs: observation of one environment.
        fresh: an episode begins, otherwise the solver's warm start is kept.
    """
    name = type(env).__name__
    if name in CLASSIC:
        CLASSIC[name](env, obs)
        return
    qpos, qvel = JOINTED.get(name, _joints)(env, obs)
    clipped = np.abs(qvel) >= CLIPPED_SPEED
    if name in ("HopperEnv", "Walker2dEnv", "InvertedDoublePendulumEnv"):
        qvel = np.where(clipped, env.data.qvel, qvel)
    if fresh:
        import mujoco

        mujoco.mj_resetData(env.model, env.data)
        env.set_state(qpos, qvel)
    else:
        env.data.qpos[:], env.data.qvel[:] = qpos, qvel


def _joints(env: Any, obs: NDArray) -> tuple[NDArray, NDArray]:
    hidden, qpos = HIDDEN_POSITIONS[type(env).__name__], env.data.qpos.copy()
    seen = env.model.nq - hidden
    qpos[hidden:] = obs[:seen]
    return qpos, obs[seen : seen + env.model.nv].copy()


def _double_pendulum(env: Any, obs: NDArray) -> tuple[NDArray, NDArray]:
    x, sines, cosines = obs[0], obs[1:3], obs[3:5]
    return np.array([x, *np.arctan2(sines, cosines)]), obs[5:8].copy()


def _reacher(env: Any, obs: NDArray) -> tuple[NDArray, NDArray]:
    angles = np.arctan2(obs[2:4], obs[:2])
    # the observation has angles but for whole turns, which the joint's limits see
    turns = np.round((env.data.qpos[:2] - angles) / (2 * np.pi))
    qpos = np.concatenate([angles + 2 * np.pi * turns, obs[4:6]])
    return qpos, np.array([*obs[6:8], 0.0, 0.0])


JOINTED = {
    "InvertedDoublePendulumEnv": _double_pendulum,
    "ReacherEnv": _reacher,
}


def _cart_pole(env: Any, obs: NDArray) -> None:
    env.state = np.array(obs, np.float64)


def _pendulum(env: Any, obs: NDArray) -> None:
    env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]], np.float64)


def _acrobot(env: Any, obs: NDArray) -> None:
    angles = np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2])
    env.state = np.array([*angles, obs[4], obs[5]], np.float64)


CLASSIC = {
    "CartPoleEnv": _cart_pole,
    "PendulumEnv": _pendulum,
    "AcrobotEnv": _acrobot,
    "MountainCarEnv": _cart_pole,
    "Continuous_MountainCarEnv": _cart_pole,
}
