"""Atari games, `ALE/<game>-v5`, with the standard preprocessing.

Several are ale-py's own vector environment, which preprocesses in C++. A single one, for videos and
under wrappers, is made of Gymnasium's wrappers with the same settings.

Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; Machado et al.
2018, "Revisiting the Arcade Learning Environment".
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing, ClipReward, FrameStackObservation, TimeLimit

NAMESPACE = "ALE/"
ENTRY_POINT = "ale_py.env:AtariEnv"
VECTOR_ENTRY_POINT = "ale_py.vector_env:AtariVectorEnv"
OF_THE_GAME = (  # the rest are settings of the preprocessing
    "repeat_action_probability",
    "full_action_space",
    "continuous",
    "continuous_action_threshold",
)
# The vector environment would break the contract of rlopt.rollout: a step after `terminated` that
# is no reset, rows of some environments only.
REFUSED = ("life_loss_info", "batch_size", "autoreset_mode")
SCORES = {"reward_clipping": False, "episodic_life": False}  # what evaluations see: the game's own


def is_atari(env_id: str) -> bool:
    """Whether it is a game's id, with or without its module."""
    return env_id.rpartition(":")[2].startswith(NAMESPACE)


def register() -> None:
    """Put the games into Gymnasium's registry.

    Raises:
        ValueError: ale-py is not installed.
    """
    try:
        import ale_py
    except ImportError as error:
        raise ValueError("needs a package: pip install -e '.[atari]'") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner


def present_name(name: str) -> str | None:
    """`ALE/Pong-v5` for an older name such as PongNoFrameskip-v4; None for what is no game's."""
    match = re.fullmatch(r"(\w+?)(?:-ram)?(NoFrameskip|Deterministic)?-v\d", name)
    registered = gym.registry.get(name)
    if match is None or (registered is not None and registered.entry_point != ENTRY_POINT):
        return None
    present = f"{NAMESPACE}{match[1]}-v5"
    try:
        register()
    except ValueError:
        return present if match[2] else None
    return present if present in gym.registry else None


def vector_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ale-py's vector environment, which has limits in frames.

    Raises:
        ValueError: one that it has and rlopt.rollout can't have.
    """
    for key in REFUSED:
        if key in options:
            raise ValueError(f"kwargs.{key} is not supported")
    limit = {}
    if "max_episode_steps" in options:
        frames = options["max_episode_steps"] * options.get("frameskip", _defaults()["frameskip"])
        limit["max_num_frames_per_episode"] = frames
    return {k: v for k, v in options.items() if k != "max_episode_steps"} | limit


def time_limit(options: Mapping[str, Any]) -> int:
    """Actions after which a game is truncated."""
    settings = _defaults() | dict(options)
    return settings["max_num_frames_per_episode"] // settings["frameskip"]


def single_options(
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], Callable[[gym.Env], gym.Env]]:
    """Keyword arguments of one game without preprocessing, and the preprocessing.

    Raises:
        ValueError: a setting that only the vector environment has.
    """
    settings = _defaults() | vector_options(options)
    unknown = settings.keys() - _defaults().keys()
    if unknown:
        raise ValueError(f"kwargs.{min(unknown)} is no setting of ale-py's AtariVectorEnv")
    if not settings["maxpool"]:
        raise ValueError("kwargs.maxpool=false is for backend vector_entry_point without wrappers")
    of_the_game = {key: options[key] for key in OF_THE_GAME if key in options}
    raw = {"frameskip": 1, "max_num_frames_per_episode": None, "disable_env_checker": True}
    return of_the_game | raw, functools.partial(_preprocess, settings=settings)


@functools.cache
def _defaults() -> dict[str, Any]:
    from ale_py.vector_env import AtariVectorEnv

    parameters = inspect.signature(AtariVectorEnv).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _preprocess(env: gym.Env, settings: Mapping[str, Any]) -> gym.Env:
    skip = settings["frameskip"]
    if settings["use_fire_reset"] and "FIRE" in _meanings(env):
        env = FireReset(env)
    env = AtariPreprocessing(
        env,
        noop_max=settings["noop_max"],
        frame_skip=skip,
        screen_size=(settings["img_width"], settings["img_height"]),
        terminal_on_life_loss=settings["episodic_life"],
        grayscale_obs=settings["grayscale"],
    )
    env = FrameStackObservation(env, settings["stack_num"], padding_type="zero")
    if settings["reward_clipping"]:
        env = ClipReward(env, -1, 1)
    return TimeLimit(env, settings["max_num_frames_per_episode"] // skip)


def _meanings(env: gym.Env) -> list[str]:
    return env.get_wrapper_attr("get_action_meanings")()


class FireReset(gym.Wrapper):
    """Presses FIRE after a reset: some games wait for it."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """A fresh game that has begun."""
        self.env.reset(**kwargs)
        obs, _, _, _, info = self.env.step(_meanings(self.env).index("FIRE"))
        return obs, info
