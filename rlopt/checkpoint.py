"""Checkpoints: one file, written whole or not at all, that can't run code when it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; a crash leaves the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        ValueError: no such file, or not a readable checkpoint.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: is this a run folder?")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
