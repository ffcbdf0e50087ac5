"""Our contenders of speed.py and scaling.py, each in a process of its own.

    python benchmarks/ours.py train '{"overrides": ["algo=npg", "env=CartPole-v1"], "seconds": 10}'
    python benchmarks/ours.py raw '{"env_id": "CartPole-v1", "num_envs": 8, "seconds": 2}'

prints one line of json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from clock import Clock, TimeUp
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlopt.build import make_trainer
from rlopt.config import Config
from rlopt.envs import make_vector_env

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ConfigStore.instance().store("schema", Config)


def train(overrides: list[str], seconds: float, min_steps: int = 0) -> dict[str, Any]:
    """Steps/s of the real trainer with whatever logging and evaluation its settings ask for."""
    cfg = compose_config([*overrides, "total_steps=1000000000"])
    clock = Clock(seconds, min_steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(cfg, Path(folder))
        trainer.logger.log = then_tick(trainer.logger.log, clock)
        try:
            trainer.train()
        except TimeUp:
            trainer.logger.close()
    return {**clock.result(), "num_envs": cfg.env.num_envs, "backend": cfg.env.backend}


def compose_config(overrides: list[str]) -> DictConfig:
    """What Hydra makes of a command line, resolved."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.resolve(cfg)
    return cfg


def then_tick(log: Callable[..., None], clock: Clock) -> Callable[..., None]:
    """A logger's `log`, the last act of an iteration, followed by a tick."""

    def log_and_tick(env_steps: int, metrics: dict[str, float]) -> None:
        log(env_steps, metrics)
        clock.tick(env_steps)

    return log_and_tick


def raw(env_id: str, num_envs: int, seconds: float) -> dict[str, Any]:
    """Transitions/s of the vector environment that `env.backend=auto` gives, at random actions.

    The actions are drawn beforehand; rows that only reset an environment are no transitions.
    """
    env = make_vector_env(
        env_id, num_envs=num_envs, backend="auto", max_episode_steps=None, kwargs={}
    )
    actions = [env.action_space.sample() for _ in range(1000)]
    env.reset(seed=0)
    for action in actions[:100]:
        *_, terminated, truncated, _ = env.step(action)
    steps, start, elapsed = 0, time.perf_counter(), 0.0
    for action in cycle(actions):
        steps += num_envs - np.count_nonzero(terminated | truncated)
        *_, terminated, truncated, _ = env.step(action)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            break
    return {"steps_per_second": steps / elapsed, "steps": int(steps), "seconds": elapsed}


def main() -> None:
    """Run one contender."""
    contenders: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "raw": raw}
    print(json.dumps(contenders[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
