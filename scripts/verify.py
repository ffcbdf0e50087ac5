"""Audit what a run would train with: python scripts/verify.py algo=npg env=CartPole-v1.

Takes every override of train.py, writes nothing, and ends with exit code 1 on any FAIL.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import cli
import sources
import sweep
import tuned
from rlopt.build import make_trainer
from rlopt.config import Config, ConfigError, refuse_unknown, schema_keys
from rlopt.rows import Row, tolerance
from rlopt.verify import verify

HEADER = ("check", "figure", "measured", "tolerance", "")
ConfigStore.instance().store("schema", Config)


@hydra.main(version_base="1.3", config_path="../configs", config_name="verify")
def main(cfg: DictConfig) -> None:
    """Build the parts in float64, check them, print the table."""
    with cli.one_line_errors():
        start = time.perf_counter()
        torch.set_default_dtype(torch.float64)
        overrides = list(HydraConfig.get().overrides.task)
        refuse_unread(cfg, overrides)
        cfg = tuned.fitted(cfg, overrides)
        OmegaConf.resolve(cfg)
        # A trainer wants a folder for its record and a terminal for its bar; this one has neither.
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stderr(io.StringIO()):
                trainer = make_trainer(cfg, Path(folder))
                trainer.logger.close()
            rows = verify(trainer)
        print(table(rows))
        verdicts = [row.verdict for _, row in rows]
        counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("PASS", "FAIL", "n/a"))
        print(f"\n{cfg.algo._target_} on {cfg.env.id}: {counts}; "
              f"{time.perf_counter() - start:.1f} s, wrote nothing")  # fmt: skip
    if "FAIL" in verdicts:
        sys.exit(1)


def refuse_unread(cfg: DictConfig, overrides: list[str]) -> None:
    """Refuse what an audit does not read.

    Raises:
        ConfigError: a key that is no setting, settings of a sweep, or a run to resume.
    """
    refuse_unknown(cfg, schema_keys(Config))
    sweep.refuse_in_one_run(cfg, overrides)
    tuned.refuse_missing(overrides)
    sources.refuse_unread()
    for key in ("resume", "resume_force"):
        if cfg[key]:
            raise ConfigError(f"{key}={cfg[key]}: verify.py audits settings, and no run")


def table(rows: Sequence[tuple[str, Row]]) -> str:
    """Aligned columns; the name of a check stands beside its first row."""
    cells, last = [HEADER], ""
    for name, row in rows:
        measured = f"{row.value:.3g}" if row.applies else ""
        first = name if name != last else ""
        cells.append((first, row.figure, measured, tolerance(row), row.verdict))
        last = name
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit("error: -m: verify.py audits one configuration at a time")
    cli.run(main)
