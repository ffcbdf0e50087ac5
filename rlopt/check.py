"""Checks of settings: each names the setting, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{name} must be a number, got {value!r}")
    return value


def positive(**settings: Any) -> None:
    """Numbers greater than 0."""
    for name, value in settings.items():
        if not _number(name, value) > 0:
            raise ValueError(f"{name} must be greater than 0, got {value!r}")


def non_negative(**settings: Any) -> None:
    """Numbers of at least 0."""
    for name, value in settings.items():
        if not _number(name, value) >= 0:
            raise ValueError(f"{name} must be at least 0, got {value!r}")


def fraction(**settings: Any) -> None:
    """Numbers from 0 to 1."""
    for name, value in settings.items():
        if not 0 <= _number(name, value) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value!r}")


def whole(minimum: int = 1, **settings: Any) -> None:
    """Whole numbers of at least `minimum`."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def one_of(allowed: Sequence[Any], **settings: Any) -> None:
    """One of the allowed values."""
    for name, value in settings.items():
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def number(**settings: Any) -> None:
    """Any number."""
    for name, value in settings.items():
        _number(name, value)


def flag(**settings: Any) -> None:
    """True or false."""
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")


def open_fraction(**settings: Any) -> None:
    """Numbers strictly between 0 and 1."""
    for name, value in settings.items():
        if not 0 < _number(name, value) < 1:
            raise ValueError(f"{name} must be greater than 0 and less than 1, got {value!r}")
