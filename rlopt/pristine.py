"""Has a library's module been changed since it was imported?

A user's module may patch a class of Gymnasium in place (`AcrobotEnv.LINK_MASS_1 = 2`, a new
`step`, another map in `frozen_lake.MAPS`): its registration stays as it was. The module's own file
says what it was: it is executed once more under another name, and both are compared.
"""

from __future__ import annotations

import enum
import importlib.util
import inspect
import sys
import types
from typing import Any

import numpy as np

# What Python itself keeps in a module or a class, or what names the copy; and `metadata`, which
# says how to draw and reset: ale-py writes into the dictionary of Gymnasium's base class.
BOOKKEEPING = {
    "__annotations__",
    "__builtins__",
    "__cached__",
    "__dict__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
    "__qualname__",
    "__spec__",
    "__weakref__",
    "__module__",
    "_abc_impl",
    "metadata",
}


def is_unchanged(entry_point: str) -> bool:
    """Whether the class `module:name` and its bases in that package are as in their files.

    What has not been imported can't have been changed.
    """
    module, _, name = entry_point.partition(":")
    if module not in sys.modules:
        return True
    found = getattr(sys.modules[module], name, None)
    if not isinstance(found, type):
        return False
    package = module.partition(".")[0]
    parts = {cls.__module__ for cls in found.__mro__} | {module}
    return all(_as_in_file(part) for part in parts if part.partition(".")[0] == package)


def _as_in_file(module: str) -> bool:
    loaded = sys.modules[module]
    origin = getattr(loaded.__spec__, "origin", None)
    if origin is None or not origin.endswith(".py"):
        return True  # compiled: nothing of it can be replaced but its names
    copy_name = f"{module}__as_in_file"
    spec = importlib.util.spec_from_file_location(copy_name, origin)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    copy.__package__ = loaded.__package__
    sys.modules[copy_name] = copy  # dataclasses look their module up
    try:
        spec.loader.exec_module(copy)
    finally:
        del sys.modules[copy_name]
    return _same_names(vars(loaded), vars(copy), {copy_name: module})


def _same_names(ours: Any, fresh: Any, renamed: dict[str, str]) -> bool:
    kept = [{key for key in names if key not in BOOKKEEPING} for names in (ours, fresh)]
    return kept[0] == kept[1] and all(_same(ours[key], fresh[key], renamed) for key in kept[1])


def _same(ours: Any, fresh: Any, renamed: dict[str, str]) -> bool:
    if ours is fresh:
        return True
    if not _same_class(type(ours), type(fresh), renamed):
        return False
    if isinstance(fresh, enum.EnumMeta):
        members = [{name: x.value for name, x in e.__members__.items()} for e in (ours, fresh)]
        return _same_class(ours, fresh, renamed) and members[0] == members[1]
    if isinstance(fresh, type):
        same = _same_class(ours, fresh, renamed)
        return same and _same_names(vars(ours), vars(fresh), renamed)
    if isinstance(fresh, types.FunctionType):
        mine, defaults = ((f.__defaults__, f.__kwdefaults__) for f in (ours, fresh))
        return ours.__code__ == fresh.__code__ and _same(mine, defaults, renamed)
    if isinstance(fresh, staticmethod | classmethod):
        return _same(ours.__func__, fresh.__func__, renamed)
    if isinstance(fresh, property):
        return all(_same(getattr(ours, f), getattr(fresh, f), renamed) for f in ("fget", "fset"))
    return _same_data(ours, fresh, renamed)


def _same_class(ours: type, fresh: type, renamed: dict[str, str]) -> bool:
    own = renamed.get(fresh.__module__, fresh.__module__)
    return (ours.__module__, ours.__qualname__) == (own, fresh.__qualname__)


def _same_data(ours: Any, fresh: Any, renamed: dict[str, str]) -> bool:
    if isinstance(fresh, dict):
        return ours.keys() == fresh.keys() and all(_same(ours[k], fresh[k], renamed) for k in fresh)
    if isinstance(fresh, list | tuple):
        equal_length = len(ours) == len(fresh)
        return equal_length and all(_same(a, b, renamed) for a, b in zip(ours, fresh, strict=True))
    if isinstance(fresh, np.ndarray):
        return np.array_equal(ours, fresh)
    if isinstance(fresh, bool | int | float | complex | str | bytes | set | frozenset | None):
        return ours == fresh
    return not inspect.ismodule(fresh)  # an object of a library: its identity says nothing
