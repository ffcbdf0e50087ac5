"""The config: its types, what is wrong with one, and what its user should know."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from rlopt import check
from rlopt.distributed import world_size
from rlopt.logger import flat

WITHOUT_EFFECT = [  # while a setting has a value, others do nothing
    ("algo.solver", "dense", ["algo.cg_iterations", "algo.cg_tolerance"]),
    ("algo.target_kl", None, ["algo.penalty_range"]),
    ("policy.distribution", "beta", ["policy.log_std_init"]),
    ("baseline.fit", "gauss_newton", ["baseline.optimizer", "baseline.minibatch_size"]),
    ("baseline.fit", "optimizer", ["baseline.damping", "baseline.cg_iterations"]),
    ("baseline.fit", "optimizer", ["baseline.chunk_size"]),
]
LARGEST_SEED, MOST_THREADS = 2**63 - 1, 1024


class ConfigError(ValueError):
    """A mistake in the config; one line that names the key, the value and what to write."""


@dataclass
class EnvConfig:
    """Settings of the training environments."""

    id: str = MISSING
    num_envs: int = MISSING
    backend: str = MISSING
    max_episode_steps: int | None = MISSING
    kwargs: dict[str, Any] = MISSING
    action_mask: bool = MISSING
    wrappers: list[Any] = MISSING


@dataclass
class EvalConfig:
    """Settings of the deterministic evaluation."""

    every: int = MISSING
    episodes: int = MISSING
    final_episodes: int = MISSING
    max_episode_steps: int | None = MISSING


@dataclass
class CheckpointConfig:
    """When to save."""

    every: int = MISSING


@dataclass
class LogConfig:
    """What evaluations leave besides numbers."""

    histograms: bool = MISSING
    video: bool = MISSING


@dataclass
class SweepConfig:
    """How a sweep runs; no part of any run's own config."""

    resume: bool = MISSING
    jobs: int = MISSING
    trials: int | None = MISSING
    seeds: list[int] | None = MISSING
    objective: str | None = MISSING


@dataclass
class Config:
    """Types of the top-level settings; their values and meanings are in configs/base.yaml."""

    seed: int = MISSING
    total_steps: int = MISSING
    device: str = MISSING
    num_threads: int = MISSING
    gamma: float = MISSING
    average_over: str = MISSING
    chunk_size: int | None = MISSING
    standardize_advantage: bool = MISSING
    stop_at_return: float | None = MISSING
    diagnostics: bool = MISSING
    on_nonfinite: str = MISSING
    resume: str | None = MISSING
    resume_force: bool = MISSING
    schedule: dict[str, Any] = MISSING
    env: EnvConfig = field(default_factory=EnvConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    algo: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    advantage: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)


def validate(cfg: DictConfig) -> None:
    """Check the top-level settings.

    Raises:
        ConfigError: the first one that is wrong.
    """
    try:
        check.whole(0, seed=cfg.seed)
        check.whole(total_steps=cfg.total_steps, num_threads=cfg.num_threads)
        check.between(0, LARGEST_SEED, seed=cfg.seed)
        check.between(1, MOST_THREADS, num_threads=cfg.num_threads)
        check.fraction(gamma=cfg.gamma)
        check.flag(standardize_advantage=cfg.standardize_advantage, diagnostics=cfg.diagnostics)
        check.flag(**{f"log.{key}": value for key, value in cfg.log.items()})
        if cfg.stop_at_return is not None:
            check.number(stop_at_return=cfg.stop_at_return)
        if cfg.chunk_size is not None:
            check.whole(chunk_size=cfg.chunk_size)
        check.one_of(["steps", "trajectories"], average_over=cfg.average_over)
        check.one_of(
            ["stop", "skip"] if world_size() == 1 else ["stop"], on_nonfinite=cfg.on_nonfinite
        )
        for section in ("eval", "checkpoint"):
            for key, value in cfg[section].items():
                if key != "max_episode_steps" or value is not None:
                    check.whole(**{f"{section}.{key}": value})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _use_device(cfg.device)


def refuse_contradictions(cfg: DictConfig) -> None:
    """Settings that are sound by themselves and not together.

    Raises:
        ConfigError: the first pair.
    """
    if "num_steps" in cfg.rollout:
        batch = cfg.env.num_envs * cfg.rollout.num_steps
        for section, fitted in (
            ("algo", True),
            ("baseline", cfg.baseline.get("fit") == "optimizer"),
        ):
            size = cfg[section].get("minibatch_size")
            if fitted and size is not None and size > batch:
                raise ConfigError(
                    f"{section}.minibatch_size={size} is larger than the batch: env.num_envs="
                    f"{cfg.env.num_envs} times rollout.num_steps={cfg.rollout.num_steps} is {batch}"
                )
    if "algo.penalty" in flat(to_dict(cfg.schedule)) and cfg.algo.get("target_kl") is not None:
        target = f"algo.target_kl={cfg.algo.target_kl}"
        raise ConfigError(f"schedule.algo.penalty can't be: {target} adapts it, null does not")


def _use_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device={device} is not available here: {reason}") from error


def remarks(cfg: DictConfig, overridden: list[str]) -> list[str]:
    """What the user should know of settings that are without effect, one line each.

    Args:
        cfg: the run's config, sound.
        overridden: keys that were set on the command line.
    """
    lines = [
        f"{key} is without effect: {switch}={value}"
        for switch, value, keys in WITHOUT_EFFECT
        for key in keys
        if OmegaConf.select(cfg, switch, default=MISSING) == value
        and any(k == key or k.startswith(f"{key}.") for k in overridden)
    ]
    if "algo.max_kl" in overridden and cfg.algo.get("step_size") is not None:
        lines.append(f"algo.max_kl is without effect: algo.step_size={cfg.algo.step_size}")
    if cfg.stop_at_return is not None and cfg.eval.every >= cfg.total_steps:
        lines.append(
            f"stop_at_return={cfg.stop_at_return} is without effect: eval.every={cfg.eval.every} "
            f"leaves no evaluation before total_steps={cfg.total_steps}"
        )
    if "episodes" in cfg.rollout:
        most = max(cfg.rollout.episodes, cfg.rollout.baseline_episodes)
        if most < cfg.env.num_envs:
            lines.append(
                f"env.num_envs={cfg.env.num_envs}: only {most} of them run, one for each of "
                f"rollout.episodes={cfg.rollout.episodes}"
            )
    return lines


def read_config(run: Path) -> DictConfig:
    """The config that a run folder has recorded.

    Raises:
        ConfigError: it is no run folder.
    """
    path = run / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"run={run} is no run folder: it has no .hydra/config.yaml")
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    return cfg


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain, resolved containers."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def nearest(key: str, allowed: Sequence[str]) -> str:
    """A hint at the key that was meant, else the keys beside it."""
    allowed = [k for k in allowed if "._" not in f".{k}"]  # _target_ and others of Hydra
    match = meant(key, allowed)
    if match is not None:
        return f"did you mean {match}?"
    section, beside = key, list[str]()
    while section and not beside:  # the keys of the innermost section that exists
        section = section.rpartition(".")[0]
        beside = [k for k in allowed if k.rpartition(".")[0] == section]
    return f"there are {', '.join(beside or allowed)}"


def meant(key: str, allowed: Sequence[str]) -> str | None:
    """The dotted key whose last word is the same, as in algo.optimizer.lr for algo.lr, or alike.

    Where the key's section exists, it is one of that section.
    """
    section, _, name = key.casefold().rpartition(".")
    inside = [k for k in allowed if section and k.casefold().startswith(f"{section}.")]
    inside = inside or [k for k in allowed if k.casefold().startswith(f"{section.split('.')[0]}.")]
    names = [k.casefold().rpartition(".")[2] for k in inside or allowed]
    alike = difflib.get_close_matches(name, names, n=1)
    same = [k for k, n in zip(inside or allowed, names, strict=True) if n in alike]
    return max(same, key=lambda k: difflib.SequenceMatcher(None, key, k).ratio(), default=None)


def refuse_unknown(cfg: DictConfig, known: Collection[str]) -> None:
    """Refuse keys of a composed config that nothing reads: Hydra lets `+key=value` add any.

    Args:
        cfg: the config.
        known: dotted keys that are settings; what is inside one without inner keys is free.

    Raises:
        ConfigError: the first unknown key, with the nearest known one.
    """
    container: Any = OmegaConf.to_container(cfg, resolve=False)
    keys = flat_keys(container)
    open_ = {key for key in known if not any(k.startswith(f"{key}.") for k in known)}
    real = [key for key in keys if key in known or _outer(key) & open_]
    for key in keys:
        if key not in real:
            raise ConfigError(f"{key} is no setting: {nearest(key, real)}")


def _outer(key: str) -> set[str]:
    """The keys that a dotted key lies in: a and a.b of a.b.c."""
    parts = key.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def flat_keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a nested dictionary, inner ones and leaves."""
    keys = []
    for key, value in node.items() if isinstance(node, Mapping) else ():
        keys += [f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}.")]
    return keys


def schema_keys(schema: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a dataclass of settings, those of its sections too."""
    keys = []
    for field_ in dataclasses.fields(schema):
        keys.append(prefix + field_.name)
        if dataclasses.is_dataclass(field_.default_factory):
            keys += schema_keys(field_.default_factory, f"{keys[-1]}.")
    return keys


def is_number(x: Any) -> bool:
    """A finite number, and no flag."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def one_line(error: BaseException) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split())
