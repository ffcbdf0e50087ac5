"""The random generators of a process: torch's, NumPy's and Python's global ones, and of spaces."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces


def seed_process(seed: int) -> None:
    """Seed torch, `np.random` and `random`: environments draw from all of them."""
    torch.manual_seed(seed)
    np.random.seed(np.random.SeedSequence(seed).generate_state(8))  # a seed may have 63 bits
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with the process seeded, and put the generators back afterwards."""
    before = random_state()
    seed_process(seed)
    try:
        yield
    finally:
        set_random_state(before)


def random_state() -> dict[str, Any]:
    """The state of the process' global random generators, as plain data."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, [int(key) for key in keys], *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The reverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(tuple(state["numpy"]))
    random.setstate(state["python"])


def own_spaces(env: Any) -> None:
    """Give each layer of an environment its own copy of spaces that are attributes of its class.

    All copies of the environment would draw from one generator otherwise, those of the evaluation
    too.
    """
    for layer in _layers(env):
        for kind in type(layer).__mro__:
            for name, space in vars(kind).items():
                if isinstance(space, spaces.Space) and name not in vars(layer):
                    setattr(layer, name, copy.deepcopy(space))


def seed_spaces(env: Any, seed: int) -> None:
    """Seed the spaces of an environment and its wrappers: `sample()` draws from them."""
    for layer in _layers(env):
        for space in vars(layer).values():
            if isinstance(space, spaces.Space):
                space.seed(seed)


def _layers(env: Any) -> Iterator[Any]:
    """An environment and what is inside its wrappers."""
    while env is not None:
        yield env
        env = vars(env).get("env")
