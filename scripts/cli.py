"""What every command shares: mistakes end in one line on standard error and exit code 1."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlopt.config import ConfigError, nearest, one_line

MISTAKES = (ConfigError, FloatingPointError, HydraException, OmegaConfBaseException)


def run(main: Callable[[], Any]) -> None:
    """Call a `hydra.main` function; a user's mistake is one line, a defect of ours a traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception in place of printing its own text
    sys.argv = [quote(argument) for argument in sys.argv]
    with one_line_errors():
        main()


def quote(argument: str) -> str:
    """`run=<folder>` with the folder quoted: names of a sweep's folders hold = and commas."""
    key, _, value = argument.partition("=")
    return f"run='{value}'" if key == "run" and not value.startswith(("'", '"')) else argument


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process in one line on a mistake; inside a job Hydra would add lines of its own."""
    try:
        yield
    except MISTAKES as error:
        sys.exit(f"error: {explain(error)}")


def explain(error: Exception) -> str:
    """The exception on one line, with the nearest key where one is unknown."""
    unknown = re.search(r"Could not override '([\w./]+)'|Key '([\w.]+)' is not in", str(error))
    full_key = re.search(r"full_key: ([\w.]+)", str(error))
    if unknown is None:
        return one_line(error)
    key = full_key[1] if full_key else unknown[1] or unknown[2]
    return f"{key} is no setting: {nearest(key, known_keys())}"


def known_keys() -> list[str]:
    """All keys of the config that the command line's choices of groups make."""
    groups = [a for a in sys.argv[1:] if re.fullmatch(r"\w+=[\w-]+", a)]
    for overrides in (groups, []):
        try:
            cfg = compose("train", overrides)
        except (HydraException, OmegaConfBaseException):
            continue
        return flat_keys(OmegaConf.to_container(cfg, resolve=False))
    return []


def flat_keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a nested dictionary, inner ones and leaves."""
    keys = []
    for key, value in node.items() if isinstance(node, dict) else ():
        keys += [prefix + key, *flat_keys(value, f"{prefix}{key}.")]
    return keys
