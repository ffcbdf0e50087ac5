"""The state of environments as plain data, so that a checkpoint can hold it and can't run code.

`capture` walks the attributes of a vector environment, its wrappers and its sub-environments, and
gives up at the first object whose state it can't know: a physics engine, a process, a thread pool.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import types
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.utils import RunningMeanStd

SCALARS = (bool, int, float, str)
CONTAINERS = (list, tuple, dict)
PLAIN = {*SCALARS, type(None), *CONTAINERS}
DEEPEST = 50  # levels of containers that are written as one text
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


class _SharedError(Exception):
    """An object inside a text is reached from elsewhere too."""


def capture(x: Any) -> Any:
    """Containers of numbers, arrays, generators and environments as plain data.

    An object that is reached twice is the same object after `restore`.

    Raises:
        UnknownStateError: names the object that can't be captured.
    """
    try:
        return _Capture(texts={}).encode(x, "")
    except _SharedError:
        return _Capture(texts=None).encode(x, "")


def restore(state: Any, live: Any) -> Any:
    """What was captured, in new containers and arrays, but in the environments of `live`.

    `live` is built like what was captured; its environments are changed.

    Raises:
        UnknownStateError: `live` is built in another way.
    """
    return _Restore().decode(state, live)


def capture_known(x: Any) -> Any:
    """What `capture` gives, or None where it can't."""
    try:
        return capture(x)
    except UnknownStateError:
        return None


def unknown_state(env: VectorEnv) -> str | None:
    """Why the state of an environment can't be captured, or None where it can."""
    try:
        capture({"env": env})
    except UnknownStateError as error:
        return str(error)
    return None


class _Capture:
    """Containers of plain data alone are one text each, which equal ones share.

    Toy-text environments hold a table of all their transitions, each copy its own: node by node it
    takes seconds. `texts` None: node by node all the same.
    """

    def __init__(self, texts: dict[str, str] | None) -> None:
        self.texts = texts
        self.owned: set[int] = set()  # ids of what is inside texts
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
        if id(x) in self.owned:
            raise _SharedError
        text = self._text(x)
        if text is not None:
            return ["text", text]
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
        if type(x) is deque:
            return ["deque", items, x.maxlen]
        return [type(x).__name__, items] if type(x) in CONTAINERS else ["object", items, _kind(x)]

    def _text(self, x: Any) -> str | None:
        """`x` as a text, where that says everything of it."""
        if self.texts is None:
            return None
        text, inside = _literal(x)
        if text is None:
            return None
        if not inside.isdisjoint(self.numbers) or not inside.isdisjoint(self.owned):
            raise _SharedError
        self.owned |= inside
        self.objects.append(x)
        return self.texts.setdefault(text, text)  # one object: torch.save writes it once

    def _own_memory(self, x: np.ndarray, path: str) -> None:
        root = x
        while isinstance(root.base, np.ndarray):
            root = root.base
        if id(root) in self.memory:
            raise UnknownStateError(f"{path.lstrip('.')} shares memory with another array")
        self.memory.add(id(root))
        self.objects.append(root)


def _literal(x: Any) -> tuple[str | None, set[int]]:
    """A container of plain data alone as Python's text, and the ids of what can change in it.

    No text where it holds anything else, one object twice, nan or inf, or is very deep.
    """
    inside: list[int] = []
    level = [x]
    for _ in range(DEEPEST):
        if not {type(item) for item in level} <= PLAIN:
            break
        inside += [id(item) for item in level if type(item) in (list, dict)]
        level = gc.get_referents(*(item for item in level if type(item) in CONTAINERS))
        if not level and len(set(inside)) == len(inside):
            text = repr(x)
            return None if "nan" in text or "inf" in text else text, set(inside)
    return None, set()


def _items(x: Any, path: str) -> Iterator[tuple[Any, str, Any]]:
    """Key, name and value of everything that an object holds."""
    if type(x) in (list, tuple, deque):
        yield from ((i, f"[{i}]", value) for i, value in enumerate(x))
    elif type(x) is dict and all(type(key) in SCALARS for key in x):
        yield from ((key, f".{key}", value) for key, value in x.items())
    elif isinstance(x, gym.Space):  # of a space only what it draws from can change
        kept = {"_np_random", "spaces"} & vars(x).keys()
        yield from ((key, f".{key}", getattr(x, key)) for key in sorted(kept))
    elif isinstance(x, gym.Env | VectorEnv | RunningMeanStd):
        yield from ((key, f".{key}", value) for key, value in vars(x).items())
    else:
        raise UnknownStateError(f"{path.lstrip('.')} is a {type(x).__module__}.{type(x).__name__}")


class _Restore:
    def __init__(self) -> None:
        self.objects: list[Any] = []  # in the order of `_Capture.numbers`
        self.parsed: dict[str, Any] = {}

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
        if kind == "text":
            return self._parse(content[0])
        if kind == "object" and content[1:] != [_kind(live)]:
            whose = f"a {content[1]}" if content[1:] else "an older version of rlopt"
            raise UnknownStateError(f"a {_kind(live)} can't take the saved state of {whose}")
        number = len(self.objects)
        made: Any = live if kind == "object" else {"list": [], "dict": {}}.get(kind)
        if kind == "deque":
            made = deque(maxlen=content[1])
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

    def _parse(self, text: str) -> Any:
        """The container of a text, another one at every call."""
        if text not in self.parsed:
            self.parsed[text] = ast.literal_eval(text)
        return copy.deepcopy(self.parsed[text])

    def _children(self, items: list[Any], live: Any) -> dict[Any, Any]:
        if isinstance(live, list | tuple | deque):
            live = dict(enumerate(live))
        elif isinstance(live, gym.Space | gym.Env | VectorEnv | RunningMeanStd):
            live = vars(live)
        live = live if isinstance(live, dict) else {}
        return {key: self.decode(x, live.get(key)) for key, x in items}

    def _fill(self, kind: str, made: Any, children: dict[Any, Any]) -> Any:
        if kind == "tuple":
            return tuple(children.values())
        if kind in ("list", "deque"):
            made.extend(children.values())
        elif kind == "dict":
            made.update(children)
        else:
            if not isinstance(made, gym.Space):
                vars(made).clear()
            vars(made).update(children)
        return made


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _array(dtype: str, shape: list[int], order: Any, data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order)
