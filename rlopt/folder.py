"""A run folder belongs to one process at a time."""

from __future__ import annotations

import fcntl
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
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder} is being written by another process: name another folder"
            raise ConfigError(message) from error
        yield


def is_empty(folder: Path) -> bool:
    """Whether nothing but a claim lies in a folder."""
    return all(path.name == LOCK for path in folder.iterdir())
