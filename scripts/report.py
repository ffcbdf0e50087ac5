"""From run folders to tables, figures and one page: python scripts/report.py runs=<folder>."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

import cli
from rlopt import check
from rlopt.config import ConfigError, to_dict

if TYPE_CHECKING:
    from rlopt.report.groups import Group

PAGE = "report.html"


@hydra.main(version_base="1.3", config_path="../configs", config_name="report")
def main(cfg: DictConfig) -> None:
    """One report."""
    with cli.one_line_errors():
        start = time.perf_counter()
        settings = check_settings(cfg)
        from rlopt.report import figures, groups, page, runs
        from rlopt.report.summary import Summary

        folders = runs.find(settings["runs"])
        found, left_out = runs.read_all(folders)
        if not any(len(run.steps) for run in found):
            why = f"; {left_out[0]}" if left_out else ""
            raise ConfigError(
                f"runs={settings['runs']} holds no run folder with .hydra/config.yaml and "
                f"metrics.csv{why}"
            )
        out = output_folder(settings, [run.folder for run in found])
        members, repeated = groups.group(found)
        refuse_unknown(settings["thresholds"], members)
        summary = Summary(members, settings["thresholds"])
        lead = what_there_is(members)
        page.write(out, summary, figures.draw(summary), lead, [*left_out, *repeated])
        print((out / "report.md").read_text(encoding="utf-8"))
        print(f"{time.perf_counter() - start:.0f} s, wrote {out}")


def check_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings as plain containers."""
    cli.require("report.py", "matplotlib.figure", "scipy.stats")
    cli.refuse_unknown_settings(cfg, "report")
    settings = to_dict(cfg) | {"runs": cfg.runs}  # which must be given
    settings["thresholds"] = settings["thresholds"] or {}
    for key in ("runs", "out"):
        if not isinstance(settings[key], str | None):
            raise ConfigError(f"{key}={settings[key]}: write a path or a glob, in quotes")
    if not isinstance(settings["thresholds"], dict):
        raise ConfigError(
            f"thresholds={settings['thresholds']}: write thresholds={{<env>:<return>}}"
        )
    try:
        check.number(**{f"thresholds.{k}": v for k, v in settings["thresholds"].items()})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return settings


def output_folder(settings: dict[str, Any], folders: Sequence[Path]) -> Path:
    """Where the report goes; an older report there is replaced, nothing else."""
    if settings["out"] is not None:
        out = Path(settings["out"])
    else:
        root = Path(settings["runs"])
        if not root.is_dir() or root in folders:
            root = Path(os.path.commonpath([folder.parent for folder in folders]))
        out = root / "report"
    if out.exists() and not (out / PAGE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out} is not empty and holds no report: name another folder")
    return out


def refuse_unknown(thresholds: dict[str, float], groups: Sequence[Group]) -> None:
    """A threshold for an environment that no run has is a mistake."""
    envs = sorted({group.env for group in groups})
    for env in thresholds:
        if env not in envs:
            raise ConfigError(f"thresholds.{env}: the runs are of {', '.join(envs)}")


def what_there_is(groups: Sequence[Group]) -> str:
    """One sentence."""
    statuses = Counter(run.status for group in groups for run in group.runs)
    counts = ", ".join(f"{statuses[status]} {status}" for status in sorted(statuses, reverse=True))
    settings = len({group.label for group in groups})
    envs = len({group.env for group in groups})
    plural = "" if envs == 1 else "s"
    return (
        f"{statuses.total()} runs ({counts}) of {settings} settings in {envs} environment{plural}."
    )


if __name__ == "__main__":
    cli.run(main)
