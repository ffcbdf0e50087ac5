"""Checkpoints: one file, written whole or not at all, that can't run code when it is read."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class WriteError(OSError):
    """A file of the run can't be written: the disk is full, or the folder read-only."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in what the operating system refuses."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{path} can't be written: {error.strerror or error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary one, to the disk, and then renamed.

    Raises:
        WriteError: and the earlier file is as it was.
    """
    temporary = path.with_suffix(".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; a crash leaves the old or the new."""
    buffer = io.BytesIO()
    with writing(path):
        torch.save(state, buffer)
    write(path, buffer.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        ValueError: no such file, or not a readable checkpoint.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: is this a run folder?")
    try:
        with zipfile.ZipFile(path) as file:  # torch does not compare the checksums
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write last.pt, and keep the one before as previous.pt."""
    new = folder / "new.pt"
    save(new, state)
    with writing(folder / "last.pt"):
        if (folder / "last.pt").exists():
            (folder / "last.pt").replace(folder / "previous.pt")
        new.replace(folder / "last.pt")


def load_last(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest checkpoint that is whole, and what is wrong with those after it.

    Where nothing was saved yet the state is empty.

    Raises:
        ValueError: there are checkpoints, and none is whole.
    """
    problems: list[str] = []
    paths = [folder / f"{name}.pt" for name in ("last", "previous")]
    for path in paths:
        try:
            return load(path), problems
        except ValueError as error:
            problems.append(str(error))
    if any(path.exists() for path in paths):
        raise ValueError("; ".join(problems))
    return {}, []
