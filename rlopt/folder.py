"""A run folder belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rlopt.config import ConfigError

LOCK = ".lock"


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder; the claim ends with the process, however that ends.

    Raises:
        ConfigError: another process holds it, and `wait` is false.
    """
    path = folder / LOCK
    file = _lock(path)
    while file is None and wait:
        time.sleep(0.1)
        file = _lock(path)
    if file is None:
        raise ConfigError(f"{folder} is being written by another process: name another folder")
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> TextIO | None:
    """The file, open and locked; None where another process has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if os.fstat(file.fileno()).st_nlink == 0:  # its holder ended in between and removed it
        file.close()
        return None
    return file


def is_empty(folder: Path) -> bool:
    """Whether nothing but a claim lies in a folder."""
    return all(path.name == LOCK for path in folder.iterdir())
