"""Run folders as they lie on the disk: finished, unfinished, failed or damaged."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlopt.logger import flat
from rlopt.report.stats import Array

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is five times as fast
COLUMNS = ["env_steps", "time/steps_per_second", "rollout/return_mean", "eval/return_mean"]
STATUSES = ("finished", "failed", "unfinished")


class DamagedRunError(ValueError):
    """What is wrong with a run folder, for one line."""


@dataclass(frozen=True)
class Run:
    """One run, T iterations.

    Attributes:
        folder: where it lies.
        config: its settings, flat.
        overridden: keys that its command line named.
        status: one of STATUSES.
        wall_seconds: from start to end, by summary.json; nan where there is none.
        steps: environment steps after each iteration, [T].
        seconds: of training up to then, without evaluations, [T].
        train_return: mean of the last training episodes, nan before the first, [T].
        eval_return: nan where there was no evaluation, [T].
    """

    folder: Path
    config: dict[str, Any]
    overridden: frozenset[str]
    status: str
    wall_seconds: float
    steps: Array
    seconds: Array
    train_return: Array
    eval_return: Array

    @property
    def env(self) -> str:
        """Id of its environment."""
        return str(self.config["env.id"])

    @property
    def seed(self) -> Any:
        """Its seed."""
        return self.config["seed"]

    def curve(self, kind: str, against: str) -> tuple[Array, Array]:
        """`train_return` or `eval_return` against `steps` or `seconds`, where there is one."""
        x, y = getattr(self, against), getattr(self, kind)
        return x[~np.isnan(y)], y[~np.isnan(y)]

    @cached_property
    def final(self) -> float:
        """The return of its last evaluation; nan where it is not finished or has none."""
        returns = self.curve("eval_return", "steps")[1]
        return float(returns[-1]) if self.status == "finished" and len(returns) else np.nan

    @property
    def speed(self) -> float:
        """Environment steps in a second of training."""
        return float(self.steps[-1] / self.seconds[-1]) if len(self.steps) else np.nan


def find(pattern: str) -> list[Path]:
    """Run folders in the folder, or in all that match the glob, at any depth and sorted."""
    roots = [pattern] if os.path.isdir(pattern) else glob.glob(pattern, recursive=True)
    found = set()
    for root in roots:
        for folder, inner, _ in os.walk(root):
            if os.path.isfile(os.path.join(folder, ".hydra", "config.yaml")):
                found.add(Path(folder))
                inner.clear()  # nothing of a run folder is a run
    return sorted(found)


def read_all(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and a remark on each that can't."""
    runs, remarks = [], []
    for folder in folders:
        try:
            runs.append(read(folder))
        except DamagedRunError as error:
            remarks.append(f"left out, {error}: {folder}")
    return runs, remarks


def read(folder: Path) -> Run:
    """A run from its folder; without metrics.csv, one that never ended an iteration.

    Raises:
        DamagedRunError: a file can't be read, or is not that of a run.
    """
    config = _config(folder / ".hydra" / "config.yaml")
    summary = _summary(folder / "summary.json")
    steps, speed, train_return, eval_return = _metrics(folder / "metrics.csv")
    known = speed[speed > 0]
    speed = np.where(speed > 0, speed, np.median(known) if len(known) else np.nan)  # skipped ones
    return Run(
        folder,
        config,
        _overridden(folder / ".hydra" / "overrides.yaml"),
        _status(summary, config, steps, eval_return),
        float(summary.get("wall_seconds") or np.nan),
        steps,
        np.cumsum(np.diff(steps, prepend=0) / speed),
        train_return,
        eval_return,
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = flat(yaml.load(path.read_text(), LOADER))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise DamagedRunError("its .hydra/config.yaml can't be read") from error
    if not {"env.id", "seed", "total_steps"} <= config.keys():
        raise DamagedRunError("its .hydra/config.yaml is that of something else")
    return {key: _number(value) for key, value in config.items()}


def _number(value: Any) -> Any:
    """1e-05 is a text in YAML 1.1."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _overridden(path: Path) -> frozenset[str]:
    try:
        overrides = yaml.load(path.read_text(), LOADER) if path.is_file() else []
        return frozenset(str(line).lstrip("+~").partition("=")[0] for line in overrides or [])
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DamagedRunError("its .hydra/overrides.yaml can't be read") from error


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DamagedRunError("its summary.json can't be read") from error
    if not isinstance(summary, dict):
        raise DamagedRunError("its summary.json is that of something else")
    return summary


def _metrics(path: Path) -> Array:
    """The columns of COLUMNS, [4, T]; without a last row that was being written."""
    if not path.is_file():
        return np.empty((4, 0))
    try:
        text = path.read_bytes().decode()
        header, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
        places = [header.index(name) for name in COLUMNS if name in header]
        if any(len(row) != len(header) for row in rows):
            raise ValueError("a row is cut")
        table = np.array([[row[i] or "nan" for i in places] for row in rows], dtype=float)
    except (OSError, ValueError, csv.Error) as error:
        raise DamagedRunError("its metrics.csv can't be read") from error
    if not rows:
        return np.empty((4, 0))
    present = [name in header for name in COLUMNS]
    if not all(present[:3]):
        raise DamagedRunError("its metrics.csv lacks a column")
    values = np.full((4, len(rows)), np.nan)
    values[present] = table.T
    if not (np.diff(values[0], prepend=0) > 0).all():
        raise DamagedRunError("the steps in its metrics.csv do not rise")
    return values


def _status(
    summary: dict[str, Any], config: dict[str, Any], steps: Array, eval_return: Array
) -> str:
    """By summary.json; without it a run is finished where it reached its end."""
    if "status" in summary:
        return summary["status"] if summary["status"] in STATUSES else "unfinished"
    done = len(steps) > 0 and steps[-1] >= config["total_steps"]
    goal = config.get("stop_at_return")
    reached = isinstance(goal, int | float) and bool((eval_return >= goal).any())
    return "finished" if done or reached else "unfinished"
