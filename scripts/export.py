"""A run's greedy policy as a program of its own: python scripts/export.py run=<run folder>."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig

import cli
from rlopt.build import make_env
from rlopt.config import ConfigError, one_line
from rlopt.export import INPUTS, Greedy, export, has_onnx, inputs_like
from rlopt.observations import obs_dtype
from rlopt.trained import load_policy, read_run
from rlopt.types import obs_tensor


@hydra.main(version_base="1.3", config_path="../configs", config_name="export")
def main(cfg: DictConfig) -> None:
    """Write, read back, compare; one line says where."""
    with cli.one_line_errors():
        cli.refuse_unknown_settings(cfg, "export")
        if not has_onnx():
            print("no ONNX file is written; it needs: pip install -e '.[onnx]'", flush=True)
        folder = Path(cfg.run)
        run_cfg, state = read_run(folder, cfg.checkpoint)
        run_cfg.device, run_cfg.env.num_envs, run_cfg.env.backend = "cpu", 1, "auto"
        env = make_env(run_cfg)
        policy = load_policy(run_cfg, env, state, cfg.checkpoint)
        space: Any = env.observation_space
        zeros, dtype = np.zeros(space.shape, space.dtype), obs_dtype(env.single_observation_space)
        obs = obs_tensor(zeros, dtype, policy, "cpu")
        try:
            written = export(Greedy(policy, env.single_action_space), obs, folder)
        except ValueError as error:
            raise ConfigError(one_line(error)) from error
        names = zip(INPUTS, inputs_like(policy, obs), strict=False)
        inputs = " and ".join(
            f"{name} [B, {', '.join(map(str, x.shape[1:]))}]" for name, x in names
        )
        print(
            f"wrote {' and '.join(map(str, written))}: {cfg.checkpoint}.pt at "
            f"{state['env_steps']} steps, {obs.numpy().dtype} {inputs} to actions, which are "
            f"within {max(written.values()):.1g} of the policy's"
        )


if __name__ == "__main__":
    cli.run(main)
