"""Train a policy: python scripts/train.py algo=npg env=CartPole-v1.

With -m every combination of lists: python scripts/train.py -m algo=pg,npg 'seed=range(5)'.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
import resuming
import rlopt
import sources
import sweep
import tuned
from rlopt import checkpoint, distributed
from rlopt.build import make_trainer, remarks_on_backend, remarks_on_images
from rlopt.config import Config, ConfigError, one_line, refuse_unknown, remarks, schema_keys
from rlopt.evaluate import Evaluation
from rlopt.folder import claimed, is_empty
from rlopt.logger import digits
from rlopt.targets import GIVEN, GROUPS, refuse_unknown_settings
from rlopt.trainer import Trainer

ROOT = Path(__file__).parent.parent
log = logging.getLogger("train")
ConfigStore.instance().store("schema", Config)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run, or a sweep's job; returns the mean return of the final evaluation, for sweepers."""
    hydra_cfg = HydraConfig.get()
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return sweep.job(train, cfg, hydra_cfg)
    with cli.one_line_errors():
        overrides = list(hydra_cfg.overrides.task)
        sweep.refuse_in_one_run(cfg, overrides)
        return train(cfg, overrides, Path(hydra_cfg.runtime.output_dir))


def train(cfg: DictConfig, overrides: list[str], folder: Path) -> float:
    """A run, new or the one that `resume` names, in a folder that no other process writes."""
    refuse_unknown(cfg, schema_keys(Config))
    sources.refuse_unread()
    tuned.refuse_missing(overrides)
    if cfg.resume_force and not cfg.resume:
        raise ConfigError("resume_force=true goes with resume=<run folder>")
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "sweep"])
    cfg = tuned.fitted(cfg, overrides)
    OmegaConf.resolve(cfg)
    for section in GROUPS:
        refuse_unknown_settings(section, cfg[section], GIVEN.get(section, []))
    if cfg.resume and distributed.world_size() > 1:
        raise ConfigError(f"resume={cfg.resume}: a run of several processes can't be resumed")
    if distributed.rank() > 0:  # the first process keeps the record
        trainer = make_trainer(cfg, folder)
        with signals_end(trainer):
            return trainer.train().mean
    if not cfg.resume:
        refuse_used(folder)
    with claimed(folder):
        return make_and_run(cfg, overrides, folder)


def make_and_run(cfg: DictConfig, overrides: list[str], folder: Path) -> float:
    """Build the parts and train."""
    state = None
    if cfg.resume:
        cfg, state = resuming.config(cfg, overrides, folder), resuming.state(folder)
    else:
        refuse_used(folder)  # again: it may have been used before it was claimed
    choices: Any = HydraConfig.get().runtime.choices
    algo, tuned_file, own_files = choices.algo, tuned.file(), sources.own_files()
    record = {"tuned": sources.shown(tuned_file) if tuned_file else None}
    record |= {"experiment": choices.get("experiment")}
    trainer = make_trainer(cfg, folder, state, record)
    where = f"{cfg.env.id} ({cfg.env.num_envs} environments, {cfg.env.backend})"
    settings = record["tuned"] or "none"
    log.info("%s on %s, seed %d, tuned settings: %s", algo, where, cfg.seed, settings)
    for path in own_files:
        log.info("own file: %s", path)
    log.info("writing %s", folder)
    keys = [resuming.key_of(o).removeprefix("schedule.") for o in overrides]
    notes = [
        *remarks(cfg, keys),
        *remarks_on_backend(cfg),
        *remarks_on_images(trainer.policy, trainer.baseline),
        *tuned.remarks(cfg.env.id),
    ]
    for remark in notes:
        log.info("note: %s", remark)
    why_inexact = trainer.rollout.why_inexact()
    if why_inexact:
        log.info("resume starts new episodes: the state of %s", why_inexact)
    save_config(cfg, [o for o in overrides if not o.startswith("resume")], folder)

    about = {"algo": algo, "env": cfg.env.id, "seed": cfg.seed, **record, "own_files": own_files}
    about["resumed_at"] = None if state is None else trainer.env_steps
    return run(trainer, folder, about)


def run(trainer: Trainer, folder: Path, about: dict[str, Any]) -> float:
    """Train, and leave the record of it in the run folder however it ends."""
    start = time.perf_counter()
    evaluation, status, reason = None, "failed", None
    try:
        with signals_end(trainer):
            evaluation = trainer.train()
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise
    finally:
        seconds = time.perf_counter() - start
        about["resume"] = "starts new episodes" if trainer.rollout.why_inexact() else "exact"
        summary = {**about, **summarize(trainer, evaluation, seconds), "status": status}
        end(trainer, folder, {**summary, "error": reason})
        if evaluation is None:
            log.info("%s after %d steps, wrote %s", status, trainer.env_steps, folder)
    mean, std = digits(evaluation.mean), digits(evaluation.std)
    log.info("%.0f s, evaluation %s +- %s", seconds, mean, std)
    log.info("wrote %s", folder)
    return evaluation.mean


@contextmanager
def signals_end(trainer: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM end training after its iteration and a checkpoint, a second one at once.

    Only a process' main thread may handle signals; in another thread they do what they did.
    """

    def handle(number: int, frame: Any) -> None:
        if trainer.stop_signal:
            raise KeyboardInterrupt(128 + number)
        trainer.stop_signal = number
        print("ending after this iteration; once more to end at once", file=sys.stderr)

    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(trainer: Trainer, folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json and end the record; on a full disk the first error is the one to tell."""
    try:
        content = json.dumps(summary, indent=2) + "\n"
        checkpoint.write(folder / "summary.json", content.encode())
        trainer.logger.close()
    except OSError:
        if summary["error"] is None:
            raise


def refuse_used(folder: Path) -> None:
    """See to it that a run starts in an empty folder."""
    if not is_empty(folder):
        raise ConfigError(f"hydra.run.dir={folder} is not empty: name a folder that is")


def save_config(cfg: DictConfig, overrides: list[str], folder: Path) -> None:
    """Hydra's record of a run, written only once the run is known to be sound."""
    places = ",".join(sources.of_run())
    search = [f"hydra.searchpath=[{places}]"] if places else []  # for resume to find the files
    for name, content in (("overrides", OmegaConf.create([*search, *overrides])), ("config", cfg)):
        checkpoint.write(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(content).encode())


def summarize(trainer: Trainer, evaluation: Evaluation | None, seconds: float) -> dict[str, Any]:
    """What summary.json says of the result; None where there is none."""
    returns = trainer.recent_returns
    return {
        "env_steps": trainer.env_steps,
        "wall_seconds": seconds,
        "train_return": float(np.mean(returns)) if returns else None,
        "eval_return_mean": evaluation.mean if evaluation and evaluation.returns else None,
        "eval_return_std": evaluation.std if evaluation and evaluation.returns else None,
        "eval_episodes": len(evaluation.returns) if evaluation else 0,
        "eval_cut_episodes": evaluation.num_cut if evaluation else 0,
        "eval_nonfinite_episodes": evaluation.num_nonfinite if evaluation else 0,
        "versions": {
            "rlopt": rlopt.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit that the code is at, with -dirty where files differ; None outside a checkout."""
    if shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "-q", "--verify", "HEAD")
    dirty = commit and git("status", "--porcelain", "--", "rlopt", "scripts", "configs")
    return (f"{commit}-dirty" if dirty else commit) or None


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
    with cli.one_line_errors():
        sys.argv[1:] = resuming.command_line(sys.argv[1:])
    if distributed.rank() > 0:
        sys.argv.append("hydra.run.dir=.")  # only the first process has a folder to make
    cli.run(main)
    distributed.stop()
