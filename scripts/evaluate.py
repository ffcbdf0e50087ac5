"""Evaluate a trained policy: python scripts/evaluate.py run=<run folder>."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

import cli
from rlopt import check
from rlopt.build import env_settings, make_env
from rlopt.config import ConfigError, one_line
from rlopt.evaluate import evaluate, record_video
from rlopt.trained import load_policy, read_run


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Print mean, std, min and max of the episodes' returns."""
    with cli.one_line_errors():
        run_cfg, state = load_run(cfg)
        env = make_env(run_cfg, evaluation=True)
        policy = load_policy(run_cfg, env, state, cfg.checkpoint)
        options: dict[str, Any] = {"seed": cfg.seed, "deterministic": cfg.deterministic}
        result = evaluate(policy, env, episodes=cfg.episodes, device=run_cfg.device, **options)
        kind = "deterministic" if cfg.deterministic else "sampled"
        print(
            f"{run_cfg.env.id}, {cfg.checkpoint}.pt at {state['env_steps']} steps, "
            f"{cfg.episodes} {kind} episodes"
        )
        print(
            f"return mean {result.mean:.2f}  std {result.std:.2f}  "
            f"min {min(result.returns):.2f}  max {max(result.returns):.2f}"
        )
        folder = Path(cfg.run) / "videos"
        if cfg.video:
            options |= {"episodes": cfg.video_episodes, "device": run_cfg.device}
            try:
                record_video(policy, env_settings(run_cfg, True), folder, **options)
            except ValueError as error:
                raise ConfigError(one_line(error)) from error
        print(f"wrote {folder if cfg.video else 'nothing'}")


def load_run(cfg: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """A run's config, with this command's environments and backend, and its checkpoint."""
    try:
        check.whole(episodes=cfg.episodes, num_envs=cfg.num_envs, video_episodes=cfg.video_episodes)
        check.whole(0, seed=cfg.seed)
        check.flag(deterministic=cfg.deterministic, video=cfg.video)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    run_cfg, state = read_run(Path(cfg.run), cfg.checkpoint)
    run_cfg.env.num_envs, run_cfg.env.backend = min(cfg.num_envs, cfg.episodes), cfg.backend
    run_cfg.device = cfg.device
    torch.set_num_threads(run_cfg.num_threads)
    return run_cfg, state


if __name__ == "__main__":
    cli.run(main)
