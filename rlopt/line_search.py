"""Backtracking line search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LineSearch:
    """The outcome of a search.

    Attributes:
        scale: the accepted fraction of the full step, 0 where none was.
        tries: fractions that were tried.
        rejected: how often each reason rejected one.
    """

    scale: float
    tries: int
    rejected: Counter[str]


def backtrack(
    reason_to_reject: Callable[[float], str | None], shrink: float, max_tries: int
) -> LineSearch:
    """Try the fractions 1, shrink, shrink^2, ... of a step until one is accepted.

    `reason_to_reject(scale)` takes that fraction of the step and says what is wrong with it, or
    None. After a failure it is the caller who restores what the tries changed.
    """
    rejected: Counter[str] = Counter()
    for tries in range(1, max_tries + 1):
        scale = shrink ** (tries - 1)
        reason = reason_to_reject(scale)
        if reason is None:
            return LineSearch(scale, tries, rejected)
        rejected[reason] += 1
    return LineSearch(0.0, max_tries, rejected)
