"""Statistics over seeds: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice".

Everything is over runs, the last axis of an array: one number of each run, [..., n]. Where several
environments enter, each has an array of its own and is resampled by itself (stratified bootstrap).
Intervals are 95% percentile bootstrap intervals, as in the paper and in its library rliable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

Array = NDArray[np.float64]
CONFIDENCE = 0.95
NUM_RESAMPLES = 5000
CURVE_RESAMPLES = 1000  # for each point of a curve
RESAMPLE_SEED = 0  # the same runs give the same page
MAX_RESAMPLED = 2_000_000  # numbers in memory at a time


class Estimate(NamedTuple):
    """A statistic and its interval; nan where there are too few runs for one."""

    value: Any
    low: Any
    high: Any


def iqm(scores: Array, axis: int = -1) -> Any:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter.

    Of n runs floor(n / 4) fall away at each end, so that it is the plain mean below four
    (Agarwal et al. 2021, section 4.3; scipy.stats.trim_mean).
    """
    return trim_mean(scores, 0.25, axis=axis) if scores.shape[axis] else math.nan


def pooled_iqm(*scores: Array, axis: int = -1) -> Any:
    """The interquartile mean over the runs of all environments together."""
    return iqm(np.concatenate(scores, axis), axis)


def estimate(
    statistic: Callable[..., Any], *samples: Array, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """A statistic of one or several samples of runs [..., n_i], each resampled by itself.

    Args:
        statistic: of the samples and the keyword `axis`, over which it reduces.
        samples: one array for each stratum; their leading dimensions are alike.
        num_resamples: of the bootstrap.
    """
    value = statistic(*samples, axis=-1)
    if min(sample.shape[-1] for sample in samples) < 2:
        nothing = np.full_like(value, math.nan, dtype=float)[()]
        return Estimate(value, nothing, nothing)
    interval = bootstrap(
        samples,
        statistic,
        n_resamples=num_resamples,
        batch=max(1, MAX_RESAMPLED // max(sample.size for sample in samples)),
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(RESAMPLE_SEED),
    ).confidence_interval
    return Estimate(value, interval.low, interval.high)


def improvement(*samples: Array, axis: int = -1) -> Any:
    """P(X > Y) + P(X = Y) / 2 for a run X of one group and a run Y of another.

    Args:
        samples: X and Y of the first environment, [..., n] and [..., m], X and Y of the second, ...
        axis: the last one.

    Returns:
        The mean over environments of the Mann-Whitney statistic U / (n m) (Agarwal et al. 2021,
        section 4.4).
    """
    pairs = zip(samples[::2], samples[1::2], strict=True)
    wins = [np.sign(x[..., :, None] - y[..., None, :]).mean((-2, -1)) for x, y in pairs]
    return (np.mean(wins, axis=0) + 1) / 2


def smallest_p(*sizes: int) -> float:
    """The least p that a two-sided rank test can give, which needs complete separation.

    Of all ways to deal the runs of each environment to the two groups, two are as extreme. Below a
    certain number of runs no result whatever is significant: 0.1 for 3 and 3, 0.029 for 4 and 4.

    Args:
        sizes: n and m of the first environment, n and m of the second, ...
    """
    ways = (math.comb(n + m, n) for n, m in zip(sizes[::2], sizes[1::2], strict=True))
    return min(1.0, 2 / math.prod(ways))


def profile(scores: Sequence[Array], thresholds: Array) -> Estimate:
    """Performance profile: the share of runs whose score is above each threshold, [k].

    The mean over environments of each one's share (Agarwal et al. 2021, section 4.2).
    """
    above = [(x > thresholds[:, None]).astype(float) for x in scores]

    def share(*samples: Array, axis: int) -> Any:
        return np.mean([sample.mean(axis) for sample in samples], axis=0)

    return estimate(share, *above, num_resamples=CURVE_RESAMPLES)


def first_reached(x: Array, returns: Array, threshold: float) -> float:
    """The x of the first return of at least `threshold`; infinite where there is none."""
    reached = np.flatnonzero(returns >= threshold)
    return float(x[reached[0]]) if len(reached) else math.inf


def mean_height(x: Array, returns: Array, start: float, stop: float) -> float:
    """Area under the curve from `start` to `stop` over their distance, by the trapezium rule.

    nan where the curve does not reach from one to the other.
    """
    if not len(x) or x[0] > start or x[-1] < stop or not start < stop:
        return math.nan
    inside = (x > start) & (x < stop)
    grid = np.concatenate([[start], x[inside], [stop]])
    return float(np.trapezoid(np.interp(grid, x, returns), grid) / (stop - start))


def on_grid(curves: Sequence[tuple[Array, Array]], num_points: int) -> tuple[Array, Array]:
    """Curves of different points on one grid, of the range that all of them have.

    Args:
        curves: x and y of each run, x rising.
        num_points: k.

    Returns:
        The grid [k] and the runs [k, n]; both empty where they share no range.
    """
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, stop, num_points) if start < stop else np.empty(0)
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves], axis=-1)
