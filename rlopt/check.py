"""Checks of settings: each names the setting, its value and what is allowed."""

from __future__ import annotations

import difflib
import inspect
import math
import pydoc
import re
from collections.abc import Sequence
from typing import Any

import torch


def as_whole(value: Any) -> int | None:
    """The whole number that was meant by 1e5, "1e5.0", "100k" or "2 000"; None if none was."""
    text = re.sub(r"[_\s']", "", str(value)).casefold()
    match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?(?:e\+?\d{1,2})?)(?:\.0*)?([km]?)", text)
    if match is None or isinstance(value, bool):
        return None
    meant = float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2]]
    return int(meant) if meant.is_integer() else None


def as_flag(value: Any) -> bool | None:
    """What was meant by yes, on, 1 or no, off, 0; None if neither."""
    words = {"true": True, "yes": True, "on": True, "y": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "n": False, "0": False}
    return words.get(str(value).casefold())


def write(name: str, value: Any) -> str:
    """The end of a message: what to write, as the command line takes it; "" for None."""
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
    return f": write {name}={text}"


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
            meant = as_whole(value)
            hint = write(name, meant if meant is not None and meant >= minimum else None)
            raise ValueError(
                f"{name} must be a whole number of at least {minimum}, got {value!r}{hint}"
            )


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
            hint = write(name, as_flag(value))
            raise ValueError(f"{name} must be true or false, got {value!r}{hint}")


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
        sound = isinstance(value, list | tuple)
        wrong = [x for x in value if type(x) is not int or x < 1] if sound else [value]
        if wrong:
            meant = [as_whole(x) for x in (value if sound else re.split(r"[\s,x;-]+", str(value)))]
            hint = write(name, None if {None, 0} & {*meant} else meant)
            raise ValueError(
                f"{name} must be a list of whole numbers of at least 1, got {wrong[0]!r}{hint}"
            )


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


def class_like(name: str) -> str | None:
    """The path of the class that was meant, of the same module or else of torch.optim."""
    module, _, word = name.rpartition(".")
    try:
        found: Any = pydoc.locate(module) if module else None
    except pydoc.ErrorDuringImport:
        return None
    inside, path = (torch.optim, "torch.optim") if found is None else (found, module)
    names = {n.casefold(): n for n in dir(inside) if inspect.isclass(getattr(inside, n, None))}
    alike = difflib.get_close_matches(word.casefold(), names, n=1)
    return f"{path}.{names[alike[0]]}" if alike else None
