"""What several runs of the same settings are worth together: one number for a search."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

DIRECTIONS = {"iqm": "maximize", "auc": "maximize", "steps_to_threshold": "minimize"}


def objective(
    name: str, folders: Sequence[Path], *, total_steps: int, threshold: float | None
) -> float:
    """The interquartile mean over runs of one score each; of fewer than four runs, the mean.

    Args:
        name: `iqm` (final return), `auc` or `steps_to_threshold`, as the functions below.
        folders: of finished runs, one for each seed.
        total_steps: of each run.
        threshold: the runs' `stop_at_return`.

    Source: Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice", section 4.3.
    """
    from rlopt.report.stats import iqm  # scipy takes a third of a second; only searches need it

    curves = [evaluations(folder) for folder in folders]
    if name == "iqm":
        scores = [float(returns[-1]) for _, returns in curves]
    elif name == "auc":
        scores = [area_under_curve(*curve) for curve in curves]
    else:
        assert threshold is not None
        scores = [steps_to_threshold(*curve, total_steps, threshold) for curve in curves]
    return float(iqm(np.array(scores)))


def evaluations(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps and mean returns of a run's evaluations, both [E], from metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("eval/return_mean")]
    steps, returns = ([float(r[key]) for r in rows] for key in ("env_steps", "eval/return_mean"))
    return np.array(steps), np.array(returns)


def area_under_curve(steps: np.ndarray, returns: np.ndarray) -> float:
    """Area under the evaluations, by trapezoids, over its width in steps: a mean return."""
    if len(steps) == 1:
        return float(returns[0])
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def steps_to_threshold(
    steps: np.ndarray, returns: np.ndarray, total_steps: int, threshold: float
) -> float:
    """Steps to the evaluation that reached `threshold` and ended the run; else twice the budget.

    That it ended early tells: its last, longer evaluation may be lower than the one that ended it.
    The penalty is algorithm configuration's PAR2.
    """
    reached = steps[-1] < total_steps or returns[-1] >= threshold
    return float(steps[-1]) if reached else 2.0 * total_steps
