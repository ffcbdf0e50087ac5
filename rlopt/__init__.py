"""rlopt: policy optimisation that is right, fast and small enough to read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlopt.trained import TrainedPolicy

__version__ = "0.1.0"


def load(run: str | Path, *, checkpoint: str = "last", device: str = "cpu") -> TrainedPolicy:
    """The policy of a run folder, with its normaliser: observation in, action for `env.step` out.

    Args:
        run: the run folder.
        checkpoint: `last`, or `best`: that of the best evaluation.
        device: where the networks go.

    Raises:
        ValueError: it is no run folder, its checkpoint is missing or damaged, or its environment
            can't be made here.
    """
    from rlopt import trained  # only now: importing rlopt starts nothing

    return trained.load(Path(run), checkpoint, device)
