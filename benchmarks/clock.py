"""Steps per second of a training loop after a warm-up; needs nothing but the standard library."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


class TimeUp(Exception):  # noqa: N818 (no error)
    """Ends a training loop that has been measured for long enough."""


@dataclass
class Clock:
    """A stopwatch for loops that run on: their callback calls `tick` after each update.

    Attributes:
        seconds: what is measured at the least; only whole updates count.
        min_steps: environment steps that are measured at the least.
        warmup: ticks before the one that starts the measurement.
    """

    seconds: float
    min_steps: int = 0
    warmup: int = 2

    def __post_init__(self) -> None:
        self.ticks = 0

    def tick(self, env_steps: int) -> None:
        """Take the time at which `env_steps` are done.

        Raises:
            TimeUp: enough has been measured.
        """
        now = time.perf_counter()
        if self.ticks == self.warmup:
            self.start, self.first_step = now, env_steps
        elif self.ticks > self.warmup:
            self.elapsed, self.steps = now - self.start, env_steps - self.first_step
            if self.elapsed >= self.seconds and self.steps >= self.min_steps:
                raise TimeUp
        self.ticks += 1

    def result(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "steps_per_second": self.steps / self.elapsed,
            "steps": self.steps,
            "seconds": self.elapsed,
        }
