"""The state of environments as plain data, so that a checkpoint can hold it and can't run code.

`capture` walks the attributes of a vector environment, its wrappers and its sub-environments, and
gives up at the first object whose state it can't know: a physics engine, a process, a thread pool.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

SCALARS = (bool, int, float, str)
GENERATORS = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.MT19937,
        np.random.Philox,
        np.random.SFC64,
    )
}
# What has no state of its own: in a restored environment it is that of the new one.
CONSTANTS = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    Enum,
    EnvSpec,
    np.dtype,
    np.ufunc,
)


class UnknownStateError(ValueError):
    """An object whose state is not known to be plain data."""


def capture(x: Any) -> Any:
    """Containers of numbers, arrays, generators and environments as plain data.

    An object that is reached twice is the same object after `restore`.

    Raises:
        UnknownStateError: names the object that can't be captured.
    """
    return _Capture().encode(x, "")


def restore(state: Any, live: Any) -> Any:
    """What was captured, in new containers and arrays, but in the environments of `live`.

    `live` is built like what was captured; its environments are changed.
    """
    return _Restore().decode(state, live)


def unknown_state(env: VectorEnv) -> str | None:
    """Why the state of an environment can't be captured, or None where it can."""
    try:
        capture({"env": env})
    except UnknownStateError as error:
        return str(error)
    return None


class _Capture:
    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}  # of the objects seen, by their id
        self.objects: list[Any] = []  # keeps the ids valid
        self.memory: set[int] = set()

    def encode(self, x: Any, path: str) -> Any:
        if isinstance(x, CONSTANTS):
            return ["constant"]
        if x is None or type(x) in SCALARS:
            return x
        if isinstance(x, np.generic):
            return ["scalar", x.dtype.str, x.tobytes()]
        if id(x) in self.numbers:
            return ["again", self.numbers[id(x)]]
        self.numbers[id(x)] = len(self.numbers)
        self.objects.append(x)
        if isinstance(x, np.ndarray) and not x.dtype.hasobject:
            self._own_memory(x, path)
            order: Any = "C" if x.flags.c_contiguous else "F"
            return ["array", x.dtype.str, list(x.shape), order, x.tobytes(order)]
        if isinstance(x, np.random.Generator):
            kind = type(x.bit_generator).__name__
            return ["generator", kind, self.encode(x.bit_generator.state, path)]
        items = [[key, self.encode(v, f"{path}{name}")] for key, name, v in _items(x, path)]
        return [type(x).__name__ if type(x) in (list, tuple, dict) else "object", items]

    def _own_memory(self, x: np.ndarray, path: str) -> None:
        root = x
        while isinstance(root.base, np.ndarray):
            root = root.base
        if id(root) in self.memory:
            raise UnknownStateError(f"{path.lstrip('.')} shares memory with another array")
        self.memory.add(id(root))
        self.objects.append(root)


def _items(x: Any, path: str) -> Iterator[tuple[Any, str, Any]]:
    """Key, name and value of everything that an object holds."""
    if type(x) in (list, tuple):
        yield from ((i, f"[{i}]", value) for i, value in enumerate(x))
    elif type(x) is dict and all(type(key) in SCALARS for key in x):
        yield from ((key, f".{key}", value) for key, value in x.items())
    elif isinstance(x, gym.Space):  # of a space only what it draws from can change
        kept = {"_np_random", "spaces"} & vars(x).keys()
        yield from ((key, f".{key}", getattr(x, key)) for key in sorted(kept))
    elif isinstance(x, gym.Env | VectorEnv):
        yield from ((key, f".{key}", value) for key, value in vars(x).items())
    else:
        raise UnknownStateError(f"{path.lstrip('.')} is a {type(x).__module__}.{type(x).__name__}")


class _Restore:
    def __init__(self) -> None:
        self.objects: list[Any] = []  # in the order of `_Capture.numbers`

    def decode(self, state: Any, live: Any) -> Any:
        if not isinstance(state, list):
            return state
        kind, *content = state
        if kind == "constant":
            return live
        if kind == "scalar":
            return np.frombuffer(content[1], content[0])[0]
        if kind == "again":
            return self.objects[content[0]]
        number = len(self.objects)
        made: Any = live if kind == "object" else {"list": [], "dict": {}}.get(kind)
        self.objects.append(made)
        if kind == "array":
            made = _array(*content)
        elif kind == "generator":
            made = np.random.Generator(GENERATORS[content[0]]())
            made.bit_generator.state = self.decode(content[1], None)
        else:
            made = self._fill(kind, made, self._children(content[0], live))
        self.objects[number] = made
        return made

    def _children(self, items: list[Any], live: Any) -> dict[Any, Any]:
        if isinstance(live, list | tuple):
            live = dict(enumerate(live))
        elif isinstance(live, gym.Space | gym.Env | VectorEnv):
            live = vars(live)
        live = live if isinstance(live, dict) else {}
        return {key: self.decode(x, live.get(key)) for key, x in items}

    def _fill(self, kind: str, made: Any, children: dict[Any, Any]) -> Any:
        if kind == "tuple":
            return tuple(children.values())
        if kind == "list":
            made.extend(children.values())
        elif kind == "dict":
            made.update(children)
        else:
            if not isinstance(made, gym.Space):
                vars(made).clear()
            vars(made).update(children)
        return made


def _array(dtype: str, shape: list[int], order: Any, data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order)
