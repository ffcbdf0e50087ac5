"""Settings found for a pair of rule and environment, configs/tuned/<algo>/<env>.yaml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import sources
from hints import unknown_choice
from resuming import key_of
from rlopt.config import ConfigError
from rlopt.targets import settings_of

REPLACEABLE = ["policy", "advantage", "baseline", "rollout"]


def file() -> Path | None:
    """The settings that apply to this run, of the project or of the user's own, or None."""
    choice = HydraConfig.get().runtime.choices.get("tuned")
    return sources.file_of("tuned", choice, sources.of_run()) if choice else None


def refuse_missing(overrides: Sequence[str]) -> None:
    """Refuse `tuned=<name>` of a file that does not exist; Hydra would go on without it.

    Raises:
        ConfigError: there is none.
    """
    for override in overrides:
        if override.startswith("tuned=") and override != "tuned=null" and file() is None:
            raise ConfigError(unknown_choice(f"tuned/{override.partition('=')[2]}"))


def remarks(env_id: str) -> list[str]:
    """A line on settings for another version of the environment, where there are none for it."""
    chosen: Any = HydraConfig.get().runtime.choices
    if "tuned" not in chosen or chosen["tuned"] is None or file() is not None:
        return []  # ~tuned, tuned=null
    there = sources.choices("tuned", sources.of_run(), chosen["algo"])
    others = [c for c in there if _unversioned(c) == _unversioned(env_id)]
    missing = f"there is no tuned/{chosen['tuned']}.yaml"
    return [
        f"{missing}; tuned={other} takes the settings found for {other.partition('/')[2]}"
        for other in others
    ]


def _unversioned(name: str) -> str:
    """HalfCheetah of npg/HalfCheetah-v4 and of package:HalfCheetah-v5."""
    return re.sub(r"-v\d+$", "", re.split("[/:]", name)[-1])


def fitted(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """`cfg` without tuned settings that another choice of a part does not have.

    They were found with the default parts: a lambda for gae says nothing about td. What the command
    line itself sets stays, for the part to refuse.
    """
    path, cfg = file(), cfg.copy()
    tuned: Any = OmegaConf.load(path) if path else {}
    typed = {key_of(override) for override in overrides}
    for section in REPLACEABLE:
        for key in tuned.get(section, {}):
            known = settings_of(section, cfg[section].get("_target_"))
            if key not in known and f"{section}.{key}" not in typed:
                with open_dict(cfg):
                    del cfg[section][key]
    return cfg
