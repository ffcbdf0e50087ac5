"""A section's `_target_`, its settings checked against what the target takes."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rlopt import check
from rlopt.config import ConfigError, flat_keys, nearest, one_line, to_dict
from rlopt.envs import Wrapper, WrapperError
from rlopt.faults import RAISED
from rlopt.logger import flat

GROUPS = ["algo", "policy", "advantage", "baseline", "rollout"]
GIVEN = {"advantage": ["gamma"], "baseline": ["policy"]}  # by the package: no settings
METHODS = {  # of what each `_target_` makes
    "algo": ["step", "state_dict", "load_state_dict"],
    "policy": ["dist_params", "dist", "update_statistics", "parameters", "state_dict"],
    "baseline": ["fit", "state_dict"],
    "rollout": ["collect", "collect_for_baseline"],
}
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# what constructors raise about values that nobody foresaw; torch without memory: a RuntimeError
UNSOUND = (ValueError, TypeError, RuntimeError, OverflowError, MemoryError)


def make(cfg: DictConfig, section: str, *args: Any, **given: Any) -> Any:
    """Build what `cfg[section]` describes: its `_target_` of `args`, with its settings as keywords.

    What is `given` goes to a target that has a keyword of that name, and is no setting.

    Raises:
        ConfigError: an unknown target, an unknown or missing setting, or a value that the target
        refuses.
    """
    with naming(section, cfg[section]):
        part = bind(cfg, section, **given)(*args)
    kind = "algo" if section.startswith("rules.") else section  # rules of scripts/compare.py
    missing = [name for name in METHODS[kind] if not callable(getattr(part, name, None))]
    if missing:
        target = cfg[section]._target_
        raise ConfigError(f"{section}._target_={target} can't be that: it has no {missing[0]}")
    return part


def bind(cfg: DictConfig, section: str, **given: Any) -> Callable[..., Any]:
    """The `_target_` of `cfg[section]` with its settings bound, to be called."""
    refuse_unknown_settings(section, cfg[section], given)
    with naming(section, cfg[section]):
        bound = instantiate(cfg[section], _convert_="all", _partial_=True)
    found = settings_of(section, cfg[section]._target_)
    given = {name: value for name, value in given.items() if name in found}
    return partial(bound, **given) if given else bound


def refuse_unknown_settings(section: str, settings: DictConfig, given: Collection[str]) -> None:
    """Refuse settings that the `_target_` of a section does not take, and a lack of those it needs.

    Args:
        section: its full name.
        settings: its content.
        given: names of arguments that the package gives, which are no settings.

    Raises:
        ConfigError: the first such setting.
    """
    name = settings.get("_target_")
    target, found = locate(section, name), settings_of(section, name)
    own = [str(key) for key in settings if not str(key).startswith("_")]
    parameters = inspect.signature(target).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    keywords = {name: p.default is p.empty for name, p in found.items() if name not in given}
    for key in own:
        if keywords and key not in keywords:
            inner = [k for k in flat_keys(to_dict(settings)) if k.split(".")[0] in keywords]
            real = [f"{section}.{k}" for k in dict.fromkeys([*keywords, *inner])]
            hint = nearest(f"{section}.{key}", real)
            raise ConfigError(f"{section}.{key} is no setting of {target.__name__}: {hint}")
        if not keywords and not takes_any and key not in [p.name for p in parameters]:
            raise ConfigError(f"{section}.{key} is no setting of {target.__name__}: it has none")
    for key, required in keywords.items():
        if required and key not in own:
            raise ConfigError(f"{section}.{key} is missing: {target.__name__} needs it")
    for key in own:
        refuse_name(f"{section}.{key}", settings[key], found.get(key))
        refuse_unknown_keywords(f"{section}.{key}", settings[key])


def refuse_name(name: str, value: Any, parameter: inspect.Parameter | None) -> None:
    """Refuse a word or null where a `_target_` is to be, as in algo.optimizer=sgd.

    Raises:
        ConfigError: it is one.
    """
    if not isinstance(value, Mapping) and parameter and "Callable" in str(parameter.annotation):
        likely = (check.class_like(value) or value) if isinstance(value, str) else None
        hint = check.write(f"{name}._target_", likely)
        raise ConfigError(f"{name}={value} is no class, {{_target_: <class>, ...}}{hint}")


def refuse_unknown_keywords(name: str, settings: Any) -> None:
    """Refuse what a `_target_` inside a section, an optimiser or a network, does not take.

    Raises:
        ConfigError: the first such key, or a target that does not exist.
    """
    if not isinstance(settings, Mapping):
        return
    for key, value in settings.items():
        refuse_unknown_keywords(f"{name}.{key}", value)
    if "_target_" not in settings:
        return
    target = locate(name, settings["_target_"])
    taken = taken_by(target)
    for key in settings:
        if taken and key not in taken and not str(key).startswith("_"):
            hint = nearest(f"{name}.{key}", [f"{name}.{k}" for k in taken])
            leave = "" if "[" in name else f" (~{name}.{key} leaves out what a file sets)"
            raise ConfigError(f"{name}.{key} is no setting of {target.__name__}: {hint}{leave}")


def taken_by(target: Any) -> list[str]:
    """The names that a class or function can be given; none where it takes any, or can't tell.

    Those without a default, which whoever calls it may give, come last.
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    by_name = sorted(
        (p for p in parameters if p.kind in BY_NAME), key=lambda p: p.default is p.empty
    )
    return [p.name for p in by_name]


def settings_of(section: str, name: Any) -> dict[str, inspect.Parameter]:
    """What the `_target_` of a section can be given by name.

    Raises:
        ConfigError: there is no such target, or none that can be called with settings.
    """
    target = locate(section, name)
    try:
        return keyword_parameters(target)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}._target_={name} can't be that: {error}") from error


def keyword_parameters(target: Any) -> dict[str, inspect.Parameter]:
    """A target's keyword-only parameters; `**settings` of a class are those of its base."""
    parameters = inspect.signature(target).parameters.values()
    own = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if inspect.isclass(target) and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keyword_parameters(target.__base__) | own
    return own


def locate(section: str, name: Any) -> Any:
    """The class or function of a `_target_`.

    Raises:
        ConfigError: there is none.
    """
    try:
        target: Any = pydoc.locate(str(name))
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{section}._target_={name} can't be imported: {error}") from error
    if not callable(target):
        alike = check.class_like(str(name))
        hint = f": did you mean {alike}?" if alike else ""
        raise ConfigError(f"{section}._target_={name}: there is no such class or function{hint}")
    return target


@contextmanager
def naming(section: str, settings: DictConfig) -> Iterator[None]:
    """Turn what the parts raise about their settings into a ConfigError with full names."""
    try:
        yield
    except ConfigError:
        raise
    except WrapperError as error:
        raise ConfigError(str(error)) from error
    except (*UNSOUND, InstantiationException) as error:
        message = one_line(error)
        if message.startswith(f"{section}="):
            raise ConfigError(message) from error
        key = message.split(" ")[0]
        if key in settings:
            message = message.replace(f": write {key}", f": write {section}.{key}")
            raise ConfigError(f"{section}.{message}") from error
        target = re.search(r"Error locating target '(\S+)'.* full_key: (\S+)", message)
        if target is not None:
            raise ConfigError(f"{target[2]}._target_={target[1]} can't be imported") from error
        values = (
            f"{section}.{k}={v}" for k, v in flat(to_dict(settings)).items() if "._" not in f".{k}"
        )
        raise ConfigError(f"{section}: {message} (with {', '.join(values)})") from error


def make_wrapper(name: str, settings: Any, evaluation: bool) -> Wrapper | None:
    """What puts a wrapper around an environment; None for one that evaluation leaves out.

    Raises:
        ConfigError: an unknown target or setting.
    """
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise ConfigError(f"{name} must be {{_target_: <class>, ...}}, got {settings!r}")
    target, section = locate(name, settings["_target_"]), OmegaConf.create({name: settings})[name]
    if isinstance(target, type) and issubclass(target, NormalizeObservation):
        raise ConfigError(
            f"{name}: {target.__name__} would learn other statistics in evaluation; "
            "policy.normalize_obs=true keeps them in the checkpoint"
        )
    of_reward = (gym.RewardWrapper, NormalizeReward)
    if evaluation and isinstance(target, type) and issubclass(target, of_reward):
        return None
    refuse_unknown_keywords(name, section)
    with naming(name, section):
        wrap = instantiate(section, _convert_="all", _partial_=True)
    # Gymnasium asks for tuples, which yaml does not have
    tuples = {k: tuple(x) for k, x in wrap.keywords.items() if isinstance(x, list)}
    return partial(_wrap, name=name, wrap=partial(wrap, **tuples))


def _wrap(env: gym.Env, name: str, wrap: Callable[[gym.Env], Any]) -> gym.Env:
    """The wrapped environment; whatever the wrapper raises is one line with its name."""
    try:
        wrapped = wrap(env)
    except RAISED as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise WrapperError(f"{name} can't wrap {env.observation_space}: {what}") from error
    if not isinstance(wrapped, gym.Env):
        raise WrapperError(f"{name} is no wrapper: it returns {wrapped!r:.100}")
    return wrapped
