"""Evaluate a trained policy: python scripts/evaluate.py run=<run folder>.

The environment is the run's; env.kwargs.<key>=<value>, env.max_episode_steps=, env.wrappers= and
env.id= change it for this evaluation. Everything else of the run stays.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import cli
from resuming import key_of
from rlopt import atari, check
from rlopt.build import env_settings, evaluation_limit, make_env
from rlopt.config import Config, ConfigError, nearest, one_line, to_dict
from rlopt.evaluate import evaluate, record_video, refuse_undrawable
from rlopt.logger import digits
from rlopt.seeding import seed_process
from rlopt.targets import make_wrapper
from rlopt.trained import load_policy, read_run

CHANGEABLE = ["kwargs", "max_episode_steps", "wrappers", "id"]
OWN = {"env.num_envs": "num_envs", "env.backend": "backend"}  # what this command calls them
STAYS = "belongs to the run: an evaluation can change " + ", ".join(
    ["env.kwargs.<key>", *(f"env.{name}" for name in CHANGEABLE[1:])]
)


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Print mean, std, min and max of the episodes' returns."""
    with cli.one_line_errors():
        cli.refuse_unknown_settings(cfg, "evaluate")
        run_cfg, state, changes = load_run(cfg)
        if cfg.video:
            refuse_video(run_cfg)
        env = make_env(run_cfg, evaluation=True)
        policy = fitting_policy(run_cfg, env, state, cfg.checkpoint, changes)
        options: dict[str, Any] = {
            "seed": cfg.seed,
            "deterministic": cfg.deterministic,
            "device": run_cfg.device,
            "max_episode_steps": evaluation_limit(run_cfg),
            "on_nonfinite": run_cfg.on_nonfinite,
        }
        result = evaluate(policy, env, episodes=cfg.episodes, **options)
        kind = "deterministic" if cfg.deterministic else "sampled"
        print(
            f"{run_cfg.env.id}, {cfg.checkpoint}.pt at {state['env_steps']} steps, "
            f"{cfg.episodes} {kind} episodes"
        )
        for line in [*changes, *without_effect(cfg), *result.remarks]:
            print(line)
        figures = {"mean": result.mean, "std": result.std}
        figures |= {"min": min(result.returns, default=math.nan)}
        figures |= {"max": max(result.returns, default=math.nan)}
        print("return " + "  ".join(f"{name} {digits(x)}" for name, x in figures.items()))
        folder = Path(cfg.run) / "videos"
        if cfg.video:
            options |= {"episodes": cfg.video_episodes}
            try:
                record_video(policy, env_settings(run_cfg, True), folder, **options)
            except ValueError as error:
                raise ConfigError(f"video=true: {one_line(error)}") from error
        print(f"wrote {folder if cfg.video else 'nothing'}")


def load_run(cfg: DictConfig) -> tuple[DictConfig, dict[str, Any], list[str]]:
    """A run's config, with this command's environments and backend; its checkpoint; the changes."""
    try:
        check.whole(episodes=cfg.episodes, num_envs=cfg.num_envs, video_episodes=cfg.video_episodes)
        check.whole(0, seed=cfg.seed)
        check.flag(deterministic=cfg.deterministic, video=cfg.video)
        if cfg.max_episode_steps is not None:
            check.whole(max_episode_steps=cfg.max_episode_steps)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    run_cfg, state = read_run(Path(cfg.run), cfg.checkpoint)
    changes = change_env(run_cfg, cfg.env)
    run_cfg.env.num_envs, run_cfg.env.backend = min(cfg.num_envs, cfg.episodes), cfg.backend
    run_cfg.device = cfg.device
    if cfg.max_episode_steps is not None:
        run_cfg.eval.max_episode_steps = cfg.max_episode_steps
    torch.set_num_threads(run_cfg.num_threads)
    seed_process(cfg.seed)
    return run_cfg, state, changes


def fitting_policy(
    run_cfg: DictConfig, env: Any, state: dict[str, Any], name: str, changes: list[str]
) -> Any:
    """The run's policy for its environment, which has these changes.

    Raises:
        ConfigError: it does not fit.
    """
    try:
        return load_policy(run_cfg, env, state, name)
    except ConfigError as error:
        if not changes:
            raise
        has = f"observations {env.single_observation_space}, actions {env.single_action_space}"
        what = f"the run's policy does not fit the environment as changed, {has}"
        raise ConfigError(f"{'; '.join(changes)}: {what}") from error


def refuse_video(run_cfg: DictConfig) -> None:
    """Check that a video can be written, before any episode is played.

    Raises:
        ConfigError: the environment can't be drawn, or a package is missing.
    """
    try:
        refuse_undrawable(env_settings(run_cfg, evaluation=True))
    except ValueError as error:
        raise ConfigError(f"video=true: {one_line(error)}") from error


def without_effect(cfg: DictConfig) -> list[str]:
    """A note on settings of this command that do nothing here."""
    typed = {key_of(override) for override in HydraConfig.get().overrides.task}
    if "video_episodes" not in typed or cfg.video:
        return []
    return [f"note: video_episodes={cfg.video_episodes} is without effect: video=false"]


# Changes of the run's environment


def with_env(arguments: list[str]) -> list[str]:
    """The arguments with ++ before those of env, which evaluate.yaml can't list.

    Raises:
        ConfigError: a setting of the run that an evaluation can't change.
    """
    own: Any = OmegaConf.load(cli.CONFIGS / "evaluate.yaml")
    stay = {field.name for field in dataclasses.fields(Config)} - set(own)
    result = []
    for argument in arguments:
        key = key_of(argument)
        section = key.split(".")[0].split("@")[0]
        is_flag = argument.startswith("-") or ("=" not in argument and argument[:1] != "~")
        if is_flag or section not in stay | {"env"}:
            result.append(argument)
        elif section in stay or argument.startswith("~"):
            raise ConfigError(f"{argument} {STAYS}")
        elif key == "env" and not argument.partition("=")[2].startswith("{"):
            raise ConfigError(f"{argument}: write env.id={argument.partition('=')[2]}")
        else:
            result.append("++" + argument.lstrip("+"))
    return result


def change_env(run_cfg: DictConfig, settings: DictConfig) -> list[str]:
    """Change the run's environment as this command line says; returns what was changed, in lines.

    Raises:
        ConfigError: a setting that can't be changed, or one that evaluation does not read.
    """
    changes = []
    for key, value in leaves(to_dict(settings), "env"):
        if key in OWN:
            raise ConfigError(f"{key}={value}: write {OWN[key]}={value}")
        name = key.split(".")[1]
        if name not in run_cfg.env:
            hint = nearest(key, [f"env.{each}" for each in CHANGEABLE])
            raise ConfigError(f"{key} is no setting of an environment: {hint}")
        if name not in CHANGEABLE:
            raise ConfigError(f"{key}={value} {STAYS}")
        if value == {} or key == "env.kwargs":
            raise ConfigError(f"{key}={value} changes nothing: write {key}.<key>=<value>")
        try:
            before = OmegaConf.select(run_cfg, key, default=MISSING)
            before = "not set in the run" if before == MISSING else f"the run has {before}"
            OmegaConf.update(run_cfg, key, value, merge=False)
        except (ValueError, OmegaConfBaseException) as error:
            raise ConfigError(f"{key}={value}: the run has no {key}") from error
        changes.append(f"changed: {key}={value} ({before})")
    refuse_unread(run_cfg, settings)
    return changes


def refuse_unread(run_cfg: DictConfig, settings: DictConfig) -> None:
    """Refuse changes of the reward, which in evaluation is the environment's own.

    Raises:
        ConfigError: there is one.
    """
    if "wrappers" in settings:
        for i, wrapper in enumerate(to_dict(run_cfg.env)["wrappers"]):
            if make_wrapper(f"env.wrappers[{i}]", wrapper, evaluation=True) is None:
                raise ConfigError(
                    f"env.wrappers[{i}] changes the reward, and evaluation has the environment's "
                    "own: leave it out"
                )
    for key in atari.SCORES if atari.is_atari(run_cfg.env.id) else ():
        if key in settings.get("kwargs", {}):
            raise ConfigError(
                f"env.kwargs.{key}: evaluation has the game's own score, leave it out"
            )


def leaves(node: Any, prefix: str) -> list[tuple[str, Any]]:
    """Dotted keys and values of nested dictionaries; an empty one is a value."""
    if not isinstance(node, Mapping) or (prefix != "env" and not node):
        return [(prefix, node)]
    return [pair for key, value in node.items() for pair in leaves(value, f"{prefix}.{key}")]


if __name__ == "__main__":
    with cli.one_line_errors():
        sys.argv[1:] = with_env(sys.argv[1:])
    cli.run(main)
