"""What the runs say in numbers: a row for each group, and the pairs of groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from rlopt.envs import find_spec
from rlopt.report import stats
from rlopt.report.groups import Group, swept
from rlopt.report.stats import Array, Estimate

SHOWN = 8  # groups that are drawn in colour and compared in pairs
ALL = "all environments"


@dataclass(frozen=True)
class Scale:
    """What returns of an environment are measured by.

    Attributes:
        low: return of the untrained policy: the first training returns, their median over runs.
        high: the best final evaluation of any run.
        threshold: the return that counts as reached.
        source: where the threshold is from.
    """

    low: float
    high: float
    threshold: float
    source: str

    def score(self, returns: Array) -> Array:
        """0 for the untrained policy, 1 for the best run."""
        return (returns - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Pair:
    """Probability that a run of `first` ends above one of `second`."""

    env: str
    first: str
    second: str
    estimate: Estimate
    sizes: tuple[int, ...]

    @property
    def enough(self) -> bool:
        """Whether so few runs could differ significantly at all."""
        return stats.smallest_p(*self.sizes) <= 1 - stats.CONFIDENCE

    @property
    def claimed(self) -> bool:
        """Whether the interval is on one side of 1/2, of enough runs."""
        return self.enough and not self.estimate.low <= 0.5 <= self.estimate.high


class Summary:
    """All numbers of a report.

    Args:
        groups: of every environment.
        thresholds: return to be reached in an environment, by its id; the others' are the ones
            that are registered, else 90% of the way from the untrained policy to the best run.
    """

    def __init__(self, groups: Sequence[Group], thresholds: Mapping[str, float]) -> None:
        self.groups = list(groups)
        self.envs = list(dict.fromkeys(group.env for group in groups))
        self.scales = {env: _scale(self.of_env(env), thresholds.get(env)) for env in self.envs}
        self.swept = swept(groups)

    def of_env(self, env: str) -> list[Group]:
        """Groups of one environment."""
        return [group for group in self.groups if group.env == env]

    def find(self, env: str, label: str) -> Group | None:
        """The group, where there is one."""
        return next((g for g in self.of_env(env) if g.label == label), None)

    def finals(self, env: str, label: str) -> Array:
        """Final evaluations, [n]."""
        group = self.find(env, label)
        return finals(group) if group else np.empty(0)

    def scores(self, env: str, label: str) -> Array:
        """Final evaluations on the scale of the environment, [n]."""
        return self.scales[env].score(self.finals(env, label))

    @cached_property
    def labels(self) -> list[str]:
        """All labels; the SHOWN best by their mean score come first."""
        names = list(dict.fromkeys(group.label for group in self.groups))
        if len(names) <= SHOWN:
            return names
        return sorted(names, key=self.mean_score, reverse=True)

    def mean_score(self, label: str) -> float:
        """Mean over environments of the interquartile mean of the scores; -inf without any."""
        scores = [stats.iqm(self.scores(env, label)) for env in self.envs]
        known = [score for score in scores if math.isfinite(score)]
        return float(np.mean(known)) if known else -math.inf

    @property
    def shown(self) -> list[str]:
        """Labels that are drawn in colour and compared."""
        return self.labels[:SHOWN]

    @cached_property
    def complete(self) -> list[str]:
        """Shown labels with finished runs in every environment."""
        return [
            name for name in self.shown if all(len(self.finals(env, name)) for env in self.envs)
        ]

    def rows(self, env: str) -> list[dict[str, Any]]:
        """The table of an environment, a row for each group."""
        scale, groups = self.scales[env], self.of_env(env)
        start, stop = _common_range(groups)
        return [_row(group, scale, start, stop) for group in groups]

    def aggregate(self) -> list[dict[str, Any]]:
        """Interquartile means of the scores of all environments together."""
        rows = []
        for label in self.complete:
            samples = [self.scores(env, label) for env in self.envs]
            iqm = stats.estimate(stats.pooled_iqm, *samples)
            num_runs = sum(map(len, samples))
            rows.append({"group": label, "runs": num_runs} | _named("iqm", iqm))
        return rows

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two of the shown groups, in each environment and over all of them.

        The one with the better mean score is named first, in all environments alike.
        """
        ranked = sorted(self.shown, key=self.mean_score, reverse=True)
        two = list(combinations(ranked, 2))
        pairs = [
            self._pair(env, [env], a, b)
            for env in self.envs
            for a, b in two
            if len(self.finals(env, a)) and len(self.finals(env, b))
        ]
        if len(self.envs) > 1:
            complete = [pair for pair in two if set(pair) <= set(self.complete)]
            pairs += [self._pair(ALL, self.envs, a, b) for a, b in complete]
        return pairs

    def _pair(self, name: str, envs: Sequence[str], a: str, b: str) -> Pair:
        samples = [self.finals(env, label) for env in envs for label in (a, b)]
        estimate = stats.estimate(stats.improvement, *samples)
        return Pair(name, a, b, estimate, tuple(len(sample) for sample in samples))


def finals(group: Group) -> Array:
    """Final evaluations of the finished runs, [n]."""
    values = np.array([run.final for run in group.runs])
    return values[~np.isnan(values)]


def _scale(groups: Sequence[Group], threshold: float | None) -> Scale:
    first = [
        y[0] for g in groups for run in g.runs if len(y := run.curve("train_return", "steps")[1])
    ]
    best = [value for group in groups for value in finals(group)]
    low = float(np.median(first)) if first else math.nan
    high = max(best) if best else math.nan
    if not high > low:
        high = math.nan
    registered = _registered_threshold(groups[0].env)
    if threshold is not None:
        return Scale(low, high, float(threshold), "given")
    if registered is not None:
        return Scale(low, high, registered, "registered with Gymnasium")
    return Scale(low, high, low + 0.9 * (high - low), "90% of the way to the best run")


def _registered_threshold(env: str) -> float | None:
    try:
        return find_spec(env).reward_threshold
    except ValueError:  # not installed here
        return None


def _common_range(groups: Sequence[Group]) -> tuple[float, float]:
    """The steps between which every finished run of an environment has evaluations."""
    curves = [
        steps
        for group in groups
        for run in group.runs
        if run.status == "finished" and len(steps := run.curve("eval_return", "steps")[0])
    ]
    if not curves:
        return math.nan, math.nan
    return float(max(x[0] for x in curves)), float(min(x[-1] for x in curves))


def _row(group: Group, scale: Scale, start: float, stop: float) -> dict[str, Any]:
    scores = finals(group)
    ended = [run for run in group.runs if not math.isnan(run.final)]
    curves = {x: [run.curve("eval_return", x) for run in ended] for x in ("steps", "seconds")}
    reached = {
        x: np.array([stats.first_reached(*curve, scale.threshold) for curve in curves[x]])
        for x in curves
    }
    areas = np.array([stats.mean_height(*curve, start, stop) for curve in curves["steps"]])
    speeds = [run.speed for run in group.runs if len(run.steps)]
    walls = [run.wall_seconds for run in ended if not math.isnan(run.wall_seconds)]
    statuses = [run.status for run in group.runs]
    return {
        "group": group.label,
        "seeds": len(scores),
        "failed": statuses.count("failed"),
        "unfinished": statuses.count("unfinished"),
        "steps": max((run.steps[-1] for run in group.runs if len(run.steps)), default=math.nan),
        "final_mean": float(np.mean(scores)) if len(scores) else math.nan,
        **_named("iqm", stats.estimate(stats.iqm, scores)),
        "threshold": scale.threshold,
        "reached": int(np.isfinite(reached["steps"]).sum()),
        "steps_to_threshold": _median(reached["steps"]),
        "seconds_to_threshold": _median(reached["seconds"]),
        "area": stats.iqm(areas[~np.isnan(areas)]),
        "steps_per_second": _median(speeds),
        "wall_seconds": _median(walls),
    }


def _median(values: Sequence[float] | Array) -> float:
    """The median, nan of nothing; infinite where half of the runs did not get there."""
    if not len(values):
        return math.nan
    middle = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]]
    return float(middle.mean())


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    low, high = f"{name}_low", f"{name}_high"
    return {name: float(estimate.value), low: float(estimate.low), high: float(estimate.high)}
