"""Checks of settings: each names the setting, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{name} must be a number, got {value!r}")
    if value in (math.inf, -math.inf):
        raise ValueError(f"{name} must be finite, got {value!r}")
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
    """Any finite number."""
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


def between(low: float, high: float, **settings: Any) -> None:
    """Numbers from `low` to `high`."""
    for name, value in settings.items():
        if not low <= _number(name, value) <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")


def relative_tolerance(**settings: Any) -> None:
    """Numbers of at least 0 and less than 1, at which a solver would not start."""
    for name, value in settings.items():
        if not 0 <= _number(name, value) < 1:
            raise ValueError(f"{name} must be at least 0 and less than 1, got {value!r}")


def sizes(**settings: Any) -> None:
    """Lists of whole numbers of at least 1, which may be empty."""
    for name, value in settings.items():
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list of whole numbers, got {value!r}")
        for size in value:
            whole(**{name: size})


def interval(**settings: Any) -> None:
    """Pairs [smallest, largest] of numbers."""
    for name, value in settings.items():
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"{name} must be [smallest, largest], got {value!r}")
        number(**{name: value[0]})
        number(**{name: value[1]})
        if value[0] > value[1]:
            raise ValueError(f"{name} must be [smallest, largest], got {value!r}")


def optimizer(**settings: Any) -> None:
    """Makers of optimisers, each tried on a parameter of its own: some need a closure to step."""
    for name, make in settings.items():
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.zeros(2)
        try:
            make([parameter]).step()
        except Exception as error:
            raise ValueError(f"{name} does not work: {error}") from error
