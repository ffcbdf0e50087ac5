"""Optuna's search over settings: what it may be asked, and how it goes on by its storage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from rlopt import check
from rlopt.config import ConfigError
from rlopt.objectives import DIRECTIONS

if TYPE_CHECKING:
    from optuna.study import Study

EXAMPLE = "'algo.max_kl=tag(log,interval(0.001,0.1))'"
RECORD = "sweep"  # the study's user attribute: what the search was started with


def prepare(config: DictConfig, swept: Sequence[Override], folder: Path) -> None:
    """Check a search, and set up Optuna's sweeper for the trials that are left of it.

    The plugin runs `n_trials` more, whatever its storage holds, and forgets the trials that were
    running when it was killed. Here they wait for it again, with their settings and numbers.

    Raises:
        ConfigError, ValueError: settings that are wrong, or not those that it was started with.
    """
    refuse(config, swept)
    settings, sweeper = config.sweep, config.hydra.sweeper
    sweeper.direction = DIRECTIONS[settings.objective]
    study = open_study(config, folder)
    drawn = study.get_trials(deepcopy=False)
    running = [each.number for each in drawn if not each.state.is_finished()]
    for number in running:
        requeue(study, number)
    sweeper.n_trials = max(0, settings.trials - len(drawn) + len(running))
    if "seed" in sweeper.sampler:  # the same one again would draw the first trials once more
        sweeper.sampler.seed = (sweeper.sampler.seed or 0) + len(drawn)


def refuse(config: DictConfig, swept: Sequence[Override]) -> None:
    """Name the first mistake in the settings of a search."""
    settings, sweeper = config.sweep, config.hydra.sweeper
    check.whole(**{"sweep.trials": settings.trials})
    check.one_of(list(DIRECTIONS), **{"sweep.objective": settings.objective})
    seeds = list(settings.seeds or [])
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"sweep.seeds={seeds} must be different whole numbers of at least 0")
    if sweeper.n_trials != settings.trials:
        raise ConfigError(f"hydra.sweeper.n_trials={sweeper.n_trials}: write sweep.trials=...")
    if sweeper.sampler._target_.endswith("GridSampler"):
        raise ConfigError("hydra/sweeper/sampler=grid: a grid is -m key=a,b without sweep=optuna")
    for override in config.hydra.overrides.task:
        if override.startswith("seed="):
            raise ConfigError(f"{override}: sweep=optuna trains on sweep.seeds={seeds}")
    if not swept:
        raise ConfigError(f"sweep=optuna has nothing to search: add for example {EXAMPLE}")
    stop, wanted = config.stop_at_return, f"sweep.objective={settings.objective}"
    if settings.objective == "steps_to_threshold" and stop is None:
        raise ConfigError(f"{wanted} needs the threshold: add stop_at_return=...")
    if settings.objective == "auc" and stop is not None:
        raise ConfigError(f"{wanted} needs whole curves: leave out stop_at_return={stop}")
    if settings.objective == "auc" and config.eval.every >= config.total_steps:
        every, total = f"eval.every={config.eval.every}", f"total_steps={config.total_steps}"
        raise ConfigError(f"{wanted} needs a curve: {every} must be less than {total}")


def open_study(config: DictConfig, folder: Path) -> Study:
    """The search's record in its storage, new or the one to resume."""
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # Optuna 2 is older than that
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    settings, sweeper = config.sweep, config.hydra.sweeper
    study = optuna.create_study(
        study_name=sweeper.study_name,
        storage=sweeper.storage,
        direction=sweeper.direction,
        load_if_exists=True,
    )
    own = [o for o in config.hydra.overrides.task if not o.startswith("sweep")]
    now = [*own, f"sweep.seeds={settings.seeds}", f"sweep.objective={settings.objective}"]
    before = study.user_attrs.get(RECORD)
    if before is None:
        study.set_user_attr(RECORD, now)
    elif not settings.resume:
        raise ConfigError(
            f"hydra.sweep.dir={folder} holds a sweep: add sweep.resume=true, or name another"
        )
    elif sorted(before) != sorted(now):
        different = " ".join(sorted(set(before) ^ set(now)))
        raise ConfigError(f"sweep.resume=true: the sweep in {folder} differs in {different}")
    return study


def requeue(study: Study, number: int) -> None:
    """Let a trial that has not ended be the next that Optuna hands out."""
    from optuna.trial import TrialState

    storage = study._storage
    index = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    storage.set_trial_state(index, TrialState.WAITING)
