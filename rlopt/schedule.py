"""Settings that change over a run: linearly, from their own value to the scheduled one at its end.

A part knows nothing of it: it keeps a setting under the name that the config has for it, and the
trainer writes the present value there before every iteration. The value follows from the share of
the steps that are done, and from nothing else, so that a resumed run goes on exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """One number of a part: an attribute, or `optimizer.<name>`, a number of its optimiser's.

    Attributes:
        part: a rule, or a baseline.
        name: as in the config, without its section.
        start: at the first iteration.
        end: at `total_steps`, where no iteration begins any more.
    """

    part: Any
    name: str
    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value when a share `progress` of the steps is done, from 0 to 1."""
        return self.start + progress * (self.end - self.start)

    def apply(self, progress: float) -> float:
        """Write the value where the part keeps it; returns it."""
        value = self.at(progress)
        if not self.name.startswith("optimizer."):
            setattr(self.part, self.name, value)
            return value
        for group in self.part.optimizer.param_groups:
            group[self.name.removeprefix("optimizer.")] = value
        return value

    @property
    def present(self) -> Any:
        """What the part keeps under the name now, None where it has nothing of the kind."""
        if not self.name.startswith("optimizer."):
            return getattr(self.part, self.name, None)
        groups = getattr(getattr(self.part, "optimizer", None), "param_groups", [{}])
        return groups[0].get(self.name.removeprefix("optimizer."))
