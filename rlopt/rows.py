"""What the tables of scripts/lecture.py and scripts/verify.py are made of: measured figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A measured figure and the interval it must lie in; nan fails."""

    figure: str
    value: float
    low: float
    high: float
    applies: bool = True

    @property
    def passed(self) -> bool:
        """Whether the value lies in the interval, or there is nothing to judge."""
        return not self.applies or self.low <= self.value <= self.high

    @property
    def verdict(self) -> str:
        """PASS, FAIL or n/a."""
        return ("PASS" if self.passed else "FAIL") if self.applies else "n/a"


def at_most(figure: str, value: Tensor | float, high: float) -> Row:
    """A row for an error, which must not be negative either."""
    return Row(figure, float(value), 0.0, high)


def not_applicable(why: str) -> Row:
    """A row that judges nothing and says why."""
    return Row(why, math.nan, math.nan, math.nan, applies=False)


def guarded(measure: Callable[[], list[Row]]) -> list[Row]:
    """The rows; an exception is a FAIL that says why, not the end of the table."""
    try:
        return measure()
    except Exception as error:
        why = textwrap.shorten(f"{type(error).__name__}: {error}", 90, placeholder=" ...")
        return [Row(why, math.nan, math.nan, math.nan)]


def tolerance(row: Row) -> str:
    """The interval that a row must lie in, in words."""
    if math.isnan(row.low):
        return ""
    if row.high == math.inf:
        return f">= {row.low:g}"
    return f"<= {row.high:.3g}" if row.low == 0 else f"{row.low:g} .. {row.high:g}"
