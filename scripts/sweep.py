"""Jobs of a sweep: a failed one is recorded and the others go on; a finished one runs once."""

from __future__ import annotations

import itertools
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

import cli
import search
import sources
from rlopt import check
from rlopt.config import Config, ConfigError, flat_keys, refuse_unknown, schema_keys
from rlopt.folder import LOCK, claimed, is_empty
from rlopt.objectives import objective

FAILED = "failed.txt"  # in the sweep's folder, one line for each failed job
Run = Callable[[DictConfig, list[str], Path], float]


def jobs_that_fit(num_threads: int) -> int:
    """How many jobs of so many threads the cores of this machine can run at a time."""
    from joblib import cpu_count  # minds affinity and the limits of containers

    return max(1, cpu_count() // max(1, num_threads))


OmegaConf.register_new_resolver("jobs_that_fit", jobs_that_fit, replace=True)


class Report(Callback):
    """Before a sweep: refuse what can't be. After it: exit code 1 if a job failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, which would make a mere warning of an exception."""
        with cli.one_line_errors():
            try:
                prepare(config)
            except ValueError as error:
                raise ConfigError(str(error)) from error

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, in the process that started the sweep."""
        folder = Path(config.hydra.sweep.dir)
        print(f"wrote {folder}")
        path = folder / FAILED
        if path.exists():
            names = [line.split(": ")[0] for line in path.read_text().splitlines()]
            sys.exit(f"error: {len(names)} failed, see {path}: {' '.join(sorted(names))}")


def prepare(config: DictConfig) -> None:
    """Check what a sweep was asked to do, and see to it that Hydra does that.

    Raises:
        ConfigError, ValueError: settings that are wrong, or not sound together.
    """
    settings, sweeper = config.sweep, config.hydra.sweeper
    swept = swept_overrides(config.hydra.overrides.task)
    refuse_unknown(with_swept_keys(config, swept), schema_keys(Config))
    launcher = config.hydra.launcher._target_.rpartition(".")[2]
    check.whole(**{"sweep.jobs": settings.jobs})
    if launcher == "BasicLauncher" and settings.jobs > 1:
        raise ConfigError(f"sweep.jobs={settings.jobs} needs a launcher: add sweep=joblib")
    folder = Path(config.hydra.sweep.dir)
    if settings.resume:
        named = any(o.startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra)
        refuse_to_resume(folder, named)
    if "OptunaSweeper" in sweeper._target_:
        search.prepare(config, swept, folder)
        return
    refuse_search(settings, swept)
    if launcher == "LocalLauncher":  # it starts all that it is given
        sweeper.max_batch_size = settings.jobs
    (folder / FAILED).unlink(missing_ok=True)


def with_swept_keys(config: DictConfig, swept: Iterable[Override]) -> DictConfig:
    """The settings of the jobs, with keys that only the sweep sets; Hydra leaves these out here."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    places, keys = sources.named(), flat_keys(OmegaConf.to_container(own, resolve=False))
    for key in [override.key_or_group for override in swept]:
        is_group = sources.is_group(key, places) or key.startswith("hydra")
        if not is_group and key not in keys:
            OmegaConf.update(own, key, 0, force_add=True)
    return own


def refuse_to_resume(folder: Path, named: bool) -> None:
    """See to it that a sweep to go on with is there, and that none of its processes is.

    Raises:
        ConfigError: it was not `named`, or a process is at work in it.
    """
    if not named:
        raise ConfigError("sweep.resume=true needs hydra.sweep.dir=<the folder of the sweep>")
    for lock in folder.rglob(LOCK):
        try:
            with claimed(lock.parent):
                """A process that was killed left it."""
        except ConfigError as error:
            at_work = f"a process is still at work in {lock.parent}: wait for it, or end it"
            raise ConfigError(f"sweep.resume=true: {at_work}") from error


def refuse_search(settings: DictConfig, swept: Iterable[Override]) -> None:
    """See to it that a grid has no settings of a search.

    Raises:
        ConfigError: it has.
    """
    for override in swept:
        if override.is_interval_sweep():
            raise ConfigError(f"{override.input_line}: an interval is searched by sweep=optuna")
    for key in ("trials", "seeds", "objective"):
        if settings[key] is not None:
            hint = "; a grid's seeds are seed=0,1,2" if key == "seeds" else ""
            raise ConfigError(f"sweep.{key}={settings[key]} goes with sweep=optuna{hint}")


def swept_overrides(overrides: Iterable[str]) -> list[Override]:
    """Those that name several values, or a range.

    Raises:
        ConfigError: one of the sweep's own settings.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = [override for override in parsed if override.is_sweep_override()]
    for override in swept:
        key, _, values = str(override.input_line).partition("=")
        if is_of_sweep(key):
            raise ConfigError(f"{key}={values} is several sweeps: is {key}=[{values}] meant?")
    return swept


def is_of_sweep(override: str) -> bool:
    """Whether an override, or a key, is about the sweep and not about its runs."""
    return override.lstrip("+~").partition("=")[0].split(".")[0] == "sweep"


def of_run(overrides: Iterable[str]) -> list[str]:
    """The overrides that make a run what it is; where its files were found is none."""
    search = "hydra.searchpath="
    return [o for o in overrides if not is_of_sweep(o) and not o.startswith(search)]


def refuse_in_one_run(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """See to it that a run that is no sweep has no settings of one.

    Raises:
        ConfigError: it has.
    """
    for override in filter(is_of_sweep, overrides):
        hint = "; one run goes on by resume=<its folder>" if cfg.sweep.resume else ""
        raise ConfigError(f"{override} goes with -m{hint}")


def job(run: Run, cfg: DictConfig, hydra_cfg: Any) -> float | None:
    """The result of `run`, or None where it failed; Hydra would end the sweep."""
    name = hydra_cfg.job.override_dirname or f"job{hydra_cfg.job.num}"
    folder, overrides = Path(hydra_cfg.runtime.output_dir), of_run(hydra_cfg.overrides.task)
    try:
        if cfg.sweep.seeds is not None:
            return trial(run, cfg, overrides, folder)
        return (finish if cfg.sweep.resume else start)(run, cfg, overrides, folder)
    except cli.MISTAKES as error:
        line = cli.explain(error)
    except Exception as error:  # a defect of ours is no reason to lose the other jobs
        traceback.print_exc()
        line = f"{type(error).__name__}: {cli.explain(error)}"
    print(f"error: {name}: {line}", file=sys.stderr)
    with (Path(hydra_cfg.sweep.dir) / FAILED).open("a") as file:
        file.write(f"{name}: {line}\n")
    return None


def start(run: Run, cfg: DictConfig, overrides: list[str], folder: Path) -> float:
    """A run in a folder that is new."""
    return run(cfg, overrides, folder)


def finish(run: Run, cfg: DictConfig, overrides: list[str], folder: Path) -> float:
    """What a run returned, if it has run; else it runs, from where it was ended if it was."""
    folder.mkdir(parents=True, exist_ok=True)
    result = recorded_result(overrides, folder)
    if result is not None:
        return result
    if (folder / ".hydra" / "config.yaml").exists():
        cfg.resume = str(folder)
    return run(cfg, overrides, folder)


def trial(run: Run, cfg: DictConfig, overrides: list[str], folder: Path) -> float:
    """The objective over runs on `cfg.sweep.seeds`, each in a folder of its own in the trial's.

    A trial that has the settings of another, in a search over few choices, takes that one's runs.
    """
    folders = [folder / f"seed{seed}" for seed in cfg.sweep.seeds]
    with claimed(folder, wait=True):
        for seed, run_folder in zip(cfg.sweep.seeds, folders, strict=True):
            settings = cfg.copy()
            settings.seed = seed
            finish(run, settings, [*overrides, f"seed={seed}"], run_folder)
    return objective(
        cfg.sweep.objective, folders, total_steps=cfg.total_steps, threshold=cfg.stop_at_return
    )


def recorded_result(overrides: list[str], folder: Path) -> float | None:
    """What a finished job returned when it ran; None where it must run.

    Raises:
        ConfigError: the folder holds another job, or a process is at work in it.
    """
    if is_empty(folder):
        return None
    with claimed(folder):
        record, summary = folder / ".hydra" / "overrides.yaml", folder / "summary.json"
        if record.exists() and sorted(of_run(OmegaConf.load(record))) != sorted(overrides):
            raise ConfigError(f"{folder} holds another job: name another hydra.sweep.dir")
        if summary.exists():
            result = json.loads(summary.read_text())
            if result["status"] == "finished":
                mean = result["eval_return_mean"]
                return math.nan if mean is None else float(mean)
        if not record.exists():  # it ended before there was anything to resume
            set_aside(folder)
        return None


def set_aside(folder: Path) -> None:
    """Keep what an unfinished job left under another name; the job starts anew."""
    names = (folder.with_name(f"{folder.name}.unfinished{i}") for i in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    aside.mkdir()
    for path in folder.iterdir():
        if path.name != LOCK:
            path.rename(aside / path.name)
