"""A run folder belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlopt.config import ConfigError

LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder; the claim ends with the process, however that ends.

    Raises:
        ConfigError: another process holds it.
    """
    path = folder / LOCK
    taken = ConfigError(f"{folder} is being written by another process: name another folder")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken from error
        if os.fstat(file.fileno()).st_nlink == 0:  # its holder ended in between and removed it
            raise taken
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether nothing but a claim lies in a folder."""
    return all(path.name == LOCK for path in folder.iterdir())
