"""--help of the commands, put together from configs/ and its comments: it can't go stale."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

GROUP = re.compile(r"  - (?:optional )?([\w/]+): (\S+)\s*(?:# (.*))?")
PARENT = re.compile(r"  - (\w+)$")
WHOLE_PRESETS = {"experiment", "sweep", "tuned"}  # groups whose files are told by their heads


def help_text(about: str, config: Path, command: str, asked: list[str]) -> str:
    """What a command does and all its settings.

    Args:
        about: what it does.
        config: the command's configs/<name>.yaml.
        command: how it is called.
        asked: what stands beside --help; where groups of settings are among it, these alone.
    """
    sections = dict(_sections(config))
    chosen = [sections[name] for name in asked if name in sections]
    if chosen:
        return "\n".join(chosen)
    groups = [name for name in sections if name != "settings"]
    words = "<key>=<value> ..." if not groups else "<group>=<choice> <key>=<value> ..."
    one = f"  {command} --help <group>       one of {', '.join(groups)}, alone\n" if groups else ""
    return f"""{about.strip()}

  {command} {words}
{one}  {command} --cfg job            the config that these words make; runs nothing
  {command} --hydra-help         Hydra's own flags
  eval "$({command} -sc install=bash)"     Tab completes groups, choices and keys (zsh, fish too)

{chr(10).join(sections.values())}"""


def _sections(config: Path) -> Iterator[tuple[str, str]]:
    """The command's own settings, then each group with its choices: name and text."""
    blocks = _blocks(config.read_text())
    defaults = blocks.pop("defaults", "").splitlines()
    blocks.pop("hydra", None)
    parents = [config.with_name(f"{m[1]}.yaml") for m in map(PARENT.fullmatch, defaults) if m]
    inherited = [dict(_sections(path)) for path in parents if path.is_file()]
    for part in inherited:  # less what the command's own file sets
        for key, text in _blocks(part.pop("settings", "")).items():
            blocks.setdefault(key, text)
    if blocks:
        yield "settings", "".join(blocks.values()).strip("\n") + "\n"
    for part in inherited:
        yield from part.items()
    for match in filter(None, map(GROUP.fullmatch, defaults)):
        yield match[1], _group(config.parent, *match.groups(default=""))


def _group(configs: Path, name: str, default: str, comment: str) -> str:
    """One group: its default, and each choice as it is in its file."""
    lines = [f"--- {name}" + (f": {comment}" if comment else ""), ""]
    folder = configs / name
    width = max((len(str(path.relative_to(folder))) for path in folder.rglob("*.yaml")), default=0)
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (path.stem != default, path)):
        choice, text = f"{path.relative_to(folder).with_suffix('')}", path.read_text()
        if name in WHOLE_PRESETS:
            lines.append(f"{name}={choice:{width}}{_head(text)}".rstrip())
            continue
        lines.append(f"{name}={choice}" + ("    (the default)" if choice == default else ""))
        lines += [*(f"  {line}" for line in text.splitlines()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _head(text: str) -> str:
    """The first line of the comment that a preset starts with, after `# @package _global_`."""
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    return "".join(comments[1:2])


def _blocks(text: str) -> dict[str, str]:
    """The top-level keys of a yaml file with their text; comments go with the key after them."""
    blocks: dict[str, str] = {}
    key = comments = ""
    for line in text.splitlines(keepends=True):
        if match := re.match(r"\w+(?=:)", line):
            key = match[0]
            blocks[key], comments = comments + line, ""
        elif line.startswith("#") or not key:
            comments += line
        else:
            blocks[key] += line
    return blocks
