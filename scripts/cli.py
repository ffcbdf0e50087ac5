"""What every command shares: mistakes end in one line on standard error and exit code 1."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlopt.config import ConfigError, nearest, one_line
from rlopt.distributed import LostProcessError, is_first_to_ask
from rlopt.faults import BrokenEnvError
from rlopt.linalg import SingularMatrixError
from rlopt.recorder import EndlessEpisodeError
from usage import help_text

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MISTAKES = (
    BrokenEnvError,
    ConfigError,
    EndlessEpisodeError,
    FloatingPointError,
    HydraException,
    LostProcessError,
    OmegaConfBaseException,
    OSError,  # no space, no permission, not a folder
    SingularMatrixError,
)


def run(main: Callable[[], Any]) -> None:
    """Call a `hydra.main` function; a user's mistake is one line, a defect of ours a traceback."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        script = Path(sys.argv[0])
        about = sys.modules["__main__"].__doc__ or ""
        print(help_text(about, CONFIGS / f"{script.stem}.yaml", f"python {script}", sys.argv[1:]))
        return
    if not sys.stderr.isatty():  # Gymnasium's warnings bring their colours into files too
        gymnasium.logger.colorize = lambda string, *_, **__: string
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception in place of printing its own text
    sys.argv = [quote(argument) for argument in sys.argv]
    with one_line_errors():
        main()


def quote(argument: str) -> str:
    """`run=<folder>` with the folder quoted: names of a sweep's folders hold = and commas."""
    key, _, value = argument.partition("=")
    quoted = key not in ("run", "runs", "out") or value == "null" or value.startswith(("'", '"'))
    return argument if quoted else f"{key}='{value}'"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process in one line on a mistake; inside a job Hydra would add lines of its own."""
    try:
        yield
    except KeyboardInterrupt as error:
        if is_first_to_ask():
            print("interrupted", file=sys.stderr)
        sys.exit(*(error.args or (130,)))
    except MISTAKES as error:
        sys.exit(f"error: {explain(error)}" if is_first_to_ask() else 1)
    except ValueError as error:
        if str(error) == "Record does not exist.":  # what Optuna says of a study's best trial
            sys.exit("error: every trial failed, see failed.txt in the sweep's folder")
        if not str(error).startswith("Config group override must be"):
            raise
        nulls = " ".join(a for a in sys.argv[1:] if a.endswith("=null") and "." not in a)
        sys.exit(f"error: {nulls}: name a choice of the group" if is_first_to_ask() else 1)


def explain(error: Exception) -> str:
    """The exception on one line, with the nearest key where one is unknown."""
    message = one_line(error)
    unknown = re.search(r"Could not override '([\w./]+)'", message)
    if unknown is not None:
        return unknown_key(unknown[1])
    if message.startswith("Error merging override"):
        reason = one_line(error.__cause__ or error).split(" full_key:")[0]
        return f"{message.split()[-1]}: {reason}"
    if re.search("Could not load 'hydra/(launcher|sweeper)/", message):
        return f"{message} It comes with: pip install -e '.[sweep]'"
    return message.split(" Config search path:")[0]


def unknown_key(key: str) -> str:
    """What to write in place of a key that does not exist."""
    if key.startswith(("env.kwargs.", "schedule")):
        return f"{key} is set here for the first time: write +{key}=..."
    section = key.split(".")[0] + "."
    keys = [k for k in known_keys() if "._" not in k]
    if key.startswith("policy.network.") and "policy.network" in keys:
        return f"{key} is set here for the first time: write +{key}=..."
    inside = [k for k in keys if k.startswith(section)] if "." in key else []
    if "." in key and not inside and section[:-1] in keys:
        return f"{key} is no setting: {section[:-1]} has none here"
    return f"{key} is no setting: {nearest(key, inside or [k for k in keys if '.' not in k])}"


def known_keys() -> list[str]:
    """All keys of the config that the command line's choices of groups make."""
    groups = [a for a in sys.argv[1:] if re.fullmatch(r"\+?\w+(@[\w.]+)?=[\w-]+", a)]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for overrides in (groups, []):
            try:
                cfg = compose(Path(sys.argv[0]).stem, overrides)
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
