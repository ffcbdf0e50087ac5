"""Where the files of a config come from: the project's configs, and folders of the user's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from rlopt.config import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def named() -> list[str]:
    """The user's own places on the command line, as hydra.searchpath takes them.

    They are those of --config-dir and of hydra.searchpath.
    """
    arguments, _ = get_args_parser().parse_known_args(sys.argv[1:])
    own = [f"file://{Path(arguments.config_dir).resolve()}"] if arguments.config_dir else []
    for text in arguments.overrides:
        if text.startswith("hydra.searchpath="):
            try:
                places: Any = OverridesParser.create().parse_override(text).value()
            except OverrideParseException:  # which Hydra will name
                continue
            own += [str(place) for place in places]
    return own


def is_group(name: str, places: list[str]) -> bool:
    """Whether the project's configs or these places have a folder of that name."""
    return any((folder / name).is_dir() for folder in folders(places))


def folders(places: list[str]) -> list[Path]:
    """The project's configs and these places, in the order in which Hydra looks.

    Args:
        places: file://<folder> or pkg://<package>.
    """
    found = [CONFIGS]
    for place in places:
        kind, _, path = place.partition("://")
        if kind == "file":
            found.append(Path(path).resolve())
        elif kind == "pkg" and (spec := importlib.util.find_spec(path.replace("/", "."))):
            found += map(Path, spec.submodule_search_locations or [])
    return found


def of_run() -> list[str]:
    """The user's own places that this run was composed from, with whole paths."""
    return [
        f"file://{Path(source.path).resolve()}"
        if source.schema == "file"
        else f"pkg://{source.path}"
        for source in HydraConfig.get().runtime.config_sources
        if source.provider.startswith(("command-line", "hydra.searchpath"))
    ]


def file_of(group: str, choice: str, places: list[str]) -> Path | None:
    """The file of a choice, or None: an environment, say, needs none."""
    paths = (folder / group / f"{choice}.yaml" for folder in folders(places))
    return next(filter(Path.is_file, paths), None)


def choices(group: str, places: list[str], inside: str = "") -> list[str]:
    """All choices of a group, or those in one of its folders."""
    return sorted(
        {
            str(path.relative_to(folder / group).with_suffix(""))
            for folder in folders(places)
            for path in (folder / group / inside).rglob("*.yaml")
        }
    )


def shown(path: Path) -> str:
    """A file as the record names it: relative to the project's configs, else its whole path."""
    return str(path.relative_to(CONFIGS) if path.is_relative_to(CONFIGS) else path)


def chosen() -> Iterator[tuple[str, str]]:
    """Each group and choice of this run; Hydra's own are left out."""
    for group, choice in HydraConfig.get().runtime.choices.items():
        if not group.startswith("hydra/") and choice is not None:
            for each in [choice] if isinstance(choice, str) else choice:
                yield group.partition("@")[0], str(each)


def own_files() -> list[str]:
    """The files of this run's choices that are the user's own."""
    places = of_run()
    files = (file_of(group, choice, places) for group, choice in chosen())
    return [str(path) for path in files if path and not path.is_relative_to(CONFIGS)]


def refuse_unread() -> None:
    """Refuse a choice whose file is not the one that its user means.

    Raises:
        ConfigError: a file of the user's own has the name of one of the project, which Hydra takes;
            or the name ends in .yaml, with which no tuned settings would be found.
    """
    places = of_run()
    for group, choice in chosen():
        if choice.endswith(".yaml"):
            raise ConfigError(f"{group}={choice}: write {group}={choice.removesuffix('.yaml')}")
        path = file_of(group, choice, places)
        for folder in folders(places):
            own = folder / group / f"{choice}.yaml"
            if path and own.is_file() and own.read_bytes() != path.read_bytes():
                raise ConfigError(
                    f"{own} is not read, for {path} has the same name and comes first: "
                    f"give it another name and write {group}=<that name>"
                )
