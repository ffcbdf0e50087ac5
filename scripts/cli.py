"""What every command shares: mistakes end in one line on standard error and exit code 1."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hints import explain, no_choice
from rlopt.config import ConfigError, one_line, refuse_unknown
from rlopt.distributed import LostProcessError, is_first_to_ask
from rlopt.faults import BrokenEnvError
from rlopt.linalg import SingularMatrixError
from rlopt.recorder import EndlessEpisodeError
from sources import CONFIGS
from usage import help_text

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
    yaml.YAMLError,
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
        sys.exit(f"error: {no_choice()}" if is_first_to_ask() else 1)


def require(command: str, *modules: str) -> None:
    """Check, before any work, that the packages of the extra `bench` are here and whole.

    Raises:
        ConfigError: one is not, with what to install.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            needs = f"{command} needs a package: pip install -e '.[bench]'"
            raise ConfigError(f"{needs} ({one_line(error)})") from error


def refuse_unknown_settings(cfg: DictConfig, command: str) -> None:
    """Refuse settings that are not in the command's own yaml file.

    Raises:
        ConfigError: there is one.
    """
    own: Any = OmegaConf.load(CONFIGS / f"{command}.yaml")
    refuse_unknown(cfg, set(own) - {"defaults", "hydra"})
