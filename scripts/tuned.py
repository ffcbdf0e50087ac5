"""Settings found for a pair of rule and environment, configs/tuned/<algo>/<env>.yaml."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from cli import CONFIGS
from resuming import key_of
from rlopt.targets import settings_of

REPLACEABLE = ["policy", "advantage", "baseline", "rollout"]


def file() -> str | None:
    """The settings that apply to this run, relative to configs/, or None."""
    choices: Any = HydraConfig.get().runtime.choices
    name = f"tuned/{choices.get('tuned')}.yaml"
    return name if (CONFIGS / name).is_file() else None


def fitted(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """`cfg` without tuned settings that another choice of a part does not have.

    They were found with the default parts: a lambda for gae says nothing about td. What the command
    line itself sets stays, for the part to refuse.
    """
    name, cfg = file(), cfg.copy()
    tuned: Any = OmegaConf.load(CONFIGS / name) if name else {}
    typed = {key_of(override) for override in overrides}
    for section in REPLACEABLE:
        for key in tuned.get(section, {}):
            known = settings_of(section, cfg[section].get("_target_"))
            if key not in known and f"{section}.{key}" not in typed:
                with open_dict(cfg):
                    del cfg[section][key]
    return cfg
