"""Train a policy: python scripts/train.py algo=npg env=CartPole-v1."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import cli
import rlopt
import sweep
from rlopt import distributed
from rlopt.config import Config, ConfigError, make_trainer, one_line, remarks
from rlopt.evaluate import Evaluation
from rlopt.folder import claimed, is_empty
from rlopt.trainer import Trainer

ROOT = Path(__file__).parent.parent
log = logging.getLogger("train")
ConfigStore.instance().store("schema", Config)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> float:
    """One run; returns the mean return of the final evaluation, for sweepers."""
    hydra_cfg = HydraConfig.get()
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return sweep.job(run, cfg, hydra_cfg)
    with cli.one_line_errors():
        return run(cfg, hydra_cfg)


def run(cfg: DictConfig, hydra_cfg: Any) -> float:
    """`train` in a folder that no other process writes."""
    folder = Path(hydra_cfg.runtime.output_dir)
    if distributed.rank() > 0:  # the first process keeps the record
        return train(cfg, hydra_cfg)
    refuse_used(folder)
    with claimed(folder):
        return train(cfg, hydra_cfg)


def train(cfg: DictConfig, hydra_cfg: Any) -> float:
    """Build the parts, train, and leave the record of it in the run folder."""
    start = time.perf_counter()
    folder = Path(hydra_cfg.runtime.output_dir)
    OmegaConf.resolve(cfg)
    if distributed.rank() > 0:  # the first process keeps the record
        return make_trainer(cfg, folder).train().mean
    refuse_used(folder)
    algo, tuned = hydra_cfg.runtime.choices.algo, tuned_file(hydra_cfg.runtime.choices)
    trainer = make_trainer(cfg, folder)
    where = f"{cfg.env.id} ({cfg.env.num_envs} environments, {cfg.env.backend})"
    log.info("%s on %s, seed %d, tuned settings: %s", algo, where, cfg.seed, tuned or "none")
    for remark in remarks(cfg, [o.lstrip("+~").split("=")[0] for o in hydra_cfg.overrides.task]):
        log.info("note: %s", remark)
    save_config(cfg, list(hydra_cfg.overrides.task), folder)

    about = {"algo": algo, "env": cfg.env.id, "seed": cfg.seed, "tuned": tuned}
    evaluation, status = None, "failed"
    try:
        evaluation = trainer.train()
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except Exception as error:
        about["error"] = one_line(error)
        raise
    finally:
        seconds = time.perf_counter() - start
        summary = {**about, **summarize(trainer, evaluation, seconds), "status": status}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        trainer.logger.close()
    log.info("%.0f s, evaluation %.1f +- %.1f", seconds, evaluation.mean, evaluation.std)
    log.info("wrote %s", folder)
    return evaluation.mean


def refuse_used(folder: Path) -> None:
    """See to it that a run starts in an empty folder."""
    if not is_empty(folder):
        raise ConfigError(f"hydra.run.dir={folder} is not empty: name a folder that is")


def tuned_file(choices: Any) -> str | None:
    """The tuned settings that apply, relative to configs/, or None."""
    choice = choices.get("tuned")
    exists = choice is not None and (ROOT / "configs" / "tuned" / f"{choice}.yaml").is_file()
    return f"tuned/{choice}.yaml" if exists else None


def save_config(cfg: DictConfig, overrides: list[str], folder: Path) -> None:
    """Hydra's record of a run, written only once the run is known to be sound."""
    (folder / ".hydra").mkdir()
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    OmegaConf.save(overrides, folder / ".hydra" / "overrides.yaml")


def summarize(trainer: Trainer, evaluation: Evaluation | None, seconds: float) -> dict[str, Any]:
    """What summary.json says of the result; None where there is none."""
    returns = trainer.recent_returns
    return {
        "env_steps": trainer.env_steps,
        "wall_seconds": seconds,
        "train_return": float(np.mean(returns)) if returns else None,
        "eval_return_mean": evaluation.mean if evaluation else None,
        "eval_return_std": evaluation.std if evaluation else None,
        "eval_episodes": len(evaluation.returns) if evaluation else 0,
        "versions": {
            "rlopt": rlopt.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit that the code is at, None outside a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "-q", "--verify", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def prepare_sweep() -> None:
    """See to it that a launcher may run `main` in processes, or on machines, of its own."""
    if distributed.world_size() > 1:
        told = not distributed.is_first_to_ask()
        sys.exit(1 if told else "error: -m: torchrun trains one configuration at a time")
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # where they find cli.py


if __name__ == "__main__":
    distributed.start()
    if {"-m", "--multirun"} & set(sys.argv):
        prepare_sweep()
    if distributed.rank() > 0:
        sys.argv.append("hydra.run.dir=.")  # only the first process has a folder to make
    cli.run(main)
    distributed.stop()
