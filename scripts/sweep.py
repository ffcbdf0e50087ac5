"""Jobs of a sweep: a failed one is recorded and the others go on; a finished one runs once."""

from __future__ import annotations

import itertools
import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

import cli
from rlopt.config import ConfigError
from rlopt.folder import LOCK, claimed, is_empty

FAILED = "failed.txt"  # in the sweep's folder, one line for each failed job


class Report(Callback):
    """Before a sweep: refuse what can't be resumed. After it: exit code 1 if a job failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra."""
        folder = Path(config.hydra.sweep.dir)
        named = any(o.startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra)
        if "sweep.resume=true" in config.hydra.overrides.task and not named:
            sys.exit("error: sweep.resume=true needs hydra.sweep.dir=<the folder of the sweep>")
        (folder / FAILED).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, in the process that started the sweep."""
        path = Path(config.hydra.sweep.dir) / FAILED
        if path.exists():
            names = [line.split(": ")[0] for line in path.read_text().splitlines()]
            sys.exit(f"error: {len(names)} failed, see {path}: {' '.join(sorted(names))}")


def job(run: Callable[[DictConfig, Any], float], cfg: DictConfig, hydra_cfg: Any) -> float:
    """The result of `run`, or nan where it failed; Hydra would end the sweep."""
    name = hydra_cfg.job.override_dirname or f"job{hydra_cfg.job.num}"
    try:
        if cfg.sweep.resume:
            result = recorded_result(hydra_cfg)
            if result is not None:
                return result
            if (Path(hydra_cfg.runtime.output_dir) / ".hydra" / "config.yaml").exists():
                cfg.resume = hydra_cfg.runtime.output_dir
        return run(cfg, hydra_cfg)
    except cli.MISTAKES as error:
        line = cli.explain(error)
    except Exception as error:  # a defect of ours is no reason to lose the other jobs
        traceback.print_exc()
        line = f"{type(error).__name__}: {cli.explain(error)}"
    print(f"error: {name}: {line}", file=sys.stderr)
    with (Path(hydra_cfg.sweep.dir) / FAILED).open("a") as file:
        file.write(f"{name}: {line}\n")
    return math.nan


def recorded_result(hydra_cfg: Any) -> float | None:
    """What a finished job returned when it ran; None where it must run.

    Raises:
        ConfigError: the folder holds another job, or a process is at work in it.
    """
    folder = Path(hydra_cfg.runtime.output_dir)
    if is_empty(folder):
        return None
    with claimed(folder):
        record, summary = folder / ".hydra" / "overrides.yaml", folder / "summary.json"
        if record.exists() and _of_job(OmegaConf.load(record)) != _of_job(hydra_cfg.overrides.task):
            raise ConfigError(f"{folder} holds another job: name another hydra.sweep.dir")
        if summary.exists():
            result = json.loads(summary.read_text())
            if result["status"] == "finished":
                return float(result["eval_return_mean"])
        if not record.exists():  # it ended before there was anything to resume
            set_aside(folder)
        return None


def _of_job(overrides: Any) -> list[str]:
    return [o for o in overrides if not o.startswith("sweep.resume=")]


def set_aside(folder: Path) -> None:
    """Keep what an unfinished job left under another name; the job starts anew."""
    names = (folder.with_name(f"{folder.name}.unfinished{i}") for i in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    aside.mkdir()
    for path in folder.iterdir():
        if path.name != LOCK:
            path.rename(aside / path.name)
