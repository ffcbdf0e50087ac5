"""What to write in place of a mistake on the command line, or in a yaml file of the user's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sources
from rlopt import check
from rlopt.config import Config, flat_keys, meant, nearest, one_line

FREE = ["env.kwargs", "schedule", "policy.network", "thresholds"]  # sections of keys of any name
Composed = tuple[str, list[str]]  # choices of groups, and the keys of the config that they make


def explain(error: BaseException) -> str:
    """The exception on one line, with what to write where that is known."""
    message = one_line(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override} can't be read: {message.split(' See https')[0]}"
    for pattern, answer in ANSWERS:
        match = re.search(pattern, message)
        if match is not None:
            return answer(*match.groups())
    if message.startswith("Error merging override"):
        key, _, text = message.split(" ", 3)[3].lstrip("+").partition("=")
        return wrong_value(key, text, one_line(error.__cause__ or error).split(" full_key:")[0])
    if re.search("Could not load 'hydra/(launcher|sweeper)/", message):
        return f"{message} It comes with: pip install -e '.[sweep]'"
    return message.split(" Config search path:")[0]


# Keys


def unknown_key(key: str) -> str:
    """What to write in place of a key that does not exist."""
    configs = list(composed())
    lacking = [(words, keys) for words, keys in configs if key not in keys] or [("", [])]
    words, keys = lacking[0]
    known = set().union(*(keys for _, keys in configs))
    where = f" under {words}" if key in known or len(configs) > 1 else ""
    if any(key.startswith(f"{free}.") and free in keys for free in FREE):
        return f"{key} is set here for the first time: write +{key}=..."
    section = key.split(".")[0]
    if section == "hydra":
        return f"{key} is no setting of Hydra's"
    if "." in key and section in keys and not any(k.startswith(f"{section}.") for k in keys):
        return f"{key} is no setting{where}: {section} has none here"
    return f"{key} is no setting{where}: {nearest(key, keys)}"


def composed() -> Iterator[Composed]:
    """The configs that the command line's choices of groups make, one for each choice."""
    arguments, _ = get_args_parser().parse_known_args(sys.argv[1:])
    name, places = arguments.config_name or Path(sys.argv[0]).stem, sources.named()
    search = [f"hydra.searchpath=[{','.join(places)}]"] if places else []
    none_yet = True
    with initialize_config_dir(str(sources.CONFIGS), version_base="1.3"):
        for groups in [*choices_of_groups(arguments.overrides, places), ()]:
            if not (groups or none_yet):
                return
            try:
                cfg = compose(name, [*groups, *search])
            except (HydraException, OmegaConfBaseException):
                continue
            none_yet = False
            keys = flat_keys(OmegaConf.to_container(cfg, resolve=False))
            yield " ".join(groups), [key for key in keys if "._" not in key]


def choices_of_groups(overrides: list[str], places: list[str]) -> list[tuple[str, ...]]:
    """The overrides that choose a file; of algo=npg,ppo first algo=npg, then algo=ppo."""
    chosen = []
    for override in OverridesParser.create().parse_overrides(overrides):
        group = override.key_or_group
        if sources.is_group(group, places):
            sweeps = override.is_sweep_override()
            values = [str(x) for x in override.sweep_string_iterator()] if sweeps else []
            key = override.get_key_element()
            chosen.append([f"{key}={value}" for value in values] or [str(override.input_line)])
    rows = zip_longest(*chosen)
    return [
        tuple(word or options[-1] for word, options in zip(row, chosen, strict=True))
        for row in rows
    ]


# Choices


def unknown_choice(path: str) -> str:
    """What to write in place of <group>/<choice> without a file."""
    group, _, choice = path.partition("/")
    there = sources.choices(group, sources.named())
    if "." in choice:
        return f"{group}={choice}: there is no such file; a class is {group}._target_={choice}"
    dotted = {name.replace("/", "."): name for name in there}
    match = meant(choice.replace("/", "."), list(dotted))
    hint = f"did you mean {group}={dotted[match]}?" if match else f"there are {', '.join(there)}"
    return f"{group}={choice}: there is no such file; {hint}"


def without_group(pair: str) -> str:
    """What to write where algo or env was taken away, which name the tuned settings."""
    return f"~algo and ~env leave {pair} without a value: choose others by algo=... and env=..."


def no_choice() -> str:
    """What to write for a group that was given null or a number."""
    wrong = [
        argument
        for argument in sys.argv[1:]
        if re.fullmatch(r"\+?\w+=(null|true|false|[\d.e+-]*)", argument)
        and (sources.CONFIGS / argument.partition("=")[0]).is_dir()
    ]
    return f"{' '.join(wrong)}: name a choice of the group"


# Values


def wrong_value(key: str, text: str, reason: str) -> str:
    """What to write in place of a value of the wrong type."""
    if text.casefold() == "none" and takes_null(key):
        return f"{key}={text}: no value is null, write {key}=null"
    if "converted to Integer" in reason:
        return f"{key}={text} must be a whole number{check.write(key, check.as_whole(text))}"
    if "converted to Float" in reason:
        return f"{key}={text} must be a number"
    if "valid bool" in reason:
        return f"{key}={text} must be true or false{check.write(key, check.as_flag(text))}"
    if "ListConfig" in reason:
        is_class = re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text)
        meant_list = f"[{{_target_:{text}}}]" if is_class else f"[{text}]"
        return f"{key}={text} must be a list: write '{key}={meant_list}'"
    if re.search(r"Cannot assign|not a subclass|Invalid type assigned", reason):
        return f"{key}={text} must be settings of its own: write {key}.<name>=<value>"
    return f"{key}={text}: {reason}"


def takes_null(key: str) -> bool:
    """Whether a setting of configs/base.yaml may be null."""
    try:
        OmegaConf.update(OmegaConf.structured(Config), key, None, force_add=True)
    except OmegaConfBaseException:
        return False
    return True


def several_values(override: str) -> str:
    """What to write for values with commas, where there is no sweep."""
    key, _, text = override.partition("=")
    decimal = re.fullmatch(r"[+-]?0,\d\d+", text)
    number = f", {key}={text.replace(',', '.')} for a number" if decimal else ""
    sweep = f"{override} is several values: add -m for a sweep over them"
    return f"{sweep}, or write {key}=[{text}] for a list{number}"


# Files


def in_file(name: str, reason: str, key: str) -> str:
    """What is wrong in a yaml file."""
    group, _, choice = name.partition("/")
    path = sources.file_of(group, choice, sources.named())
    file = sources.shown(path) if path else name
    if key == group:
        return f"{file}: its first line must be # @package _global_"
    if reason.startswith("Key "):
        return f"{file}: {unknown_key(key)}"
    value = re.search(r"Value '(.*?)'", reason)
    return f"{file}: {wrong_value(key, value[1], reason) if value else f'{key}: {reason}'}"


def unknown_env(message: str, env_id: str, rest: str) -> str:
    """What to write in place of an id that is not registered, if a file env/<name> is alike."""
    own = meant(env_id, sources.choices("env", sources.named()))
    return f"{message}; did you mean env={own}?" if own else message + rest


ANSWERS: list[tuple[str, Any]] = [
    (r"In '(\S+)': \w+ raised while composing config: (.*?) full_key: (\S+)", in_file),
    (r"^(env=(\S+): no environment of this id is registered)(.*)", unknown_env),
    (r"Could not override '([^']+)'", unknown_key),
    (r"Could not find '(?!hydra/)(\S+)'", unknown_choice),
    (r"Error resolving interpolation '(\$\{algo\}/\$\{env\})'", without_group),
    (r"Ambiguous value for argument '(\S+?)' 1\.", several_values),
]
