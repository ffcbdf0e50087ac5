"""How a run goes on: with its own config and command line, from its newest whole checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlopt import checkpoint
from rlopt.config import ConfigError, to_dict
from rlopt.logger import flat

# What a resumed run may change freely: how long it is, and what is recorded of it.
FREE = {
    "total_steps",
    "diagnostics",
    "on_nonfinite",
    "eval.every",
    "eval.episodes",
    "eval.final_episodes",
    "eval.max_episode_steps",
    "checkpoint.every",
    "log.histograms",
    "log.video",
}
log = logging.getLogger("train")


def command_line(arguments: list[str]) -> list[str]:
    """The arguments with those of the run that `resume=<folder>` names before them.

    Raises:
        ConfigError: it is no run folder.
    """
    asked = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("resume=")]
    if not asked or asked[-1] in ("", "null"):
        return arguments
    folder = Path(asked[-1]).resolve()
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigError(f"resume={folder} continues one run: leave out -m")
    own = [a for a in arguments if not a.startswith("resume=")]
    keys = {key_of(argument) for argument in own}
    saved = [override for override in saved_overrides(folder) if key_of(override) not in keys]
    return [*saved, *own, f"resume='{folder}'", f"hydra.run.dir='{folder}'"]


def key_of(override: str) -> str:
    """What an override of the command line sets."""
    return override.lstrip("+~").partition("=")[0]


def saved_overrides(folder: Path) -> list[str]:
    """The command line of a run.

    Raises:
        ConfigError: it is no run folder.
    """
    for name in ("config.yaml", "overrides.yaml"):
        if not (folder / ".hydra" / name).is_file():
            raise ConfigError(f"resume={folder} is no run folder: it has no .hydra/{name}")
    return [str(override) for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]


def config(cfg: DictConfig, overrides: Iterable[str], folder: Path) -> DictConfig:
    """The run's own config with what this command line changes, `cfg` being what Hydra composed.

    Raises:
        ConfigError: the changes that make it another run, if `resume_force` does not allow them.
    """
    saved = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert isinstance(saved, DictConfig)
    before = saved_overrides(folder)
    changed = [o for o in overrides if o not in before and not key_of(o).startswith("resume")]
    result = OmegaConf.merge({key: cfg[key] for key in cfg if key not in saved}, saved)
    assert isinstance(result, DictConfig)
    for override in changed:
        if key_of(override).split(".")[0] not in cfg:
            raise ConfigError(f"{override} can't be changed in a run that is resumed")
        value = OmegaConf.select(cfg, key_of(override))
        OmegaConf.update(result, key_of(override), value, merge=False)
    if result.env.backend == "auto":  # what it was resolved to
        result.env.backend = saved.env.backend
    result.resume, result.resume_force = None, False
    free = FREE - {"total_steps"} if saved.get("schedule") else FREE  # schedules end there
    old, new = flat(to_dict(saved)), flat(to_dict(result))
    keys = [key for key in old | new if key in old or key.split(".")[0] in saved]
    different = [
        f"{key}={new.get(key, 'nothing')} (was {old.get(key, 'nothing')})"
        for key in keys
        if key not in free and old.get(key) != new.get(key)
    ]
    if different and not cfg.resume_force:
        raise ConfigError(
            f"resume={folder}: the run's own settings differ in {', '.join(different)}; "
            "leave these out, or add resume_force=true"
        )
    return result


def state(folder: Path) -> dict[str, Any]:
    """The run's newest whole checkpoint; empty where it was ended before the first.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    try:
        newest, problems = checkpoint.load_last(folder / "checkpoints")
    except ValueError as error:
        raise ConfigError(f"resume={folder}: {error}") from error
    for problem in problems:
        log.warning("%s; the checkpoint before it is taken", problem)
    log.info("resumed at %d environment steps", newest.get("env_steps", 0))
    return newest
