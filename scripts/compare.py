"""What one update is worth: python scripts/compare.py algos=[pg,npg,trpo,ppo] env=CartPole-v1.

Freezes one policy and one batch, applies each rule to a copy, and reports predicted and measured
gain, predicted and measured KL, and the change of the return in paired fresh episodes.
"""

from __future__ import annotations

import copy
import csv
import functools
import math
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, DictConfig, OmegaConf

import cli
import sources
from rlopt import check, checkpoint
from rlopt.build import make_env, make_trainer
from rlopt.compare import (
    Row,
    compare,
    episode_returns,
    exact_return,
    freeze,
    half_width,
    step_of,
    transition_table,
)
from rlopt.config import (
    Config,
    ConfigError,
    one_line,
    read_config,
    refuse_unknown,
    schema_keys,
)
from rlopt.envs import derive_seed
from rlopt.targets import make
from rlopt.types import RecurrentPolicy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STREAM = 2  # of the fresh episodes; training and evaluation have 0 and 1
FROM_RUN = ["env", "policy", "advantage", "baseline", "rollout", "gamma"]
FROM_RUN += ["average_over", "standardize_advantage"]
UNREAD = ["eval", "checkpoint", "log", "stop_at_return", "resume", "resume_force", "sweep"]
OF_WARMUP = ["algo", "schedule", "warmup_steps", "diagnostics", "on_nonfinite"]
FIGURES = ["predicted gain", "surrogate gain", "predicted KL", "KL", "cosine"]  # keys of a Row
HEADER = ["rule", *FIGURES, "change of return", "unpaired", "exact change"]
COLOURS = ["#777777", "#c8442c", "#1f5fa8", "#3a8f4d", "#8a5fb0", "#c08a1e"]


@dataclass
class CompareConfig(Config):
    """Types of compare.yaml's own settings."""

    algos: list[str] = MISSING
    rules: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = MISSING
    run: str | None = MISSING
    run_checkpoint: str = MISSING
    episodes: int = MISSING
    kls: list[float] = MISSING
    output: str = MISSING


ConfigStore.instance().store("schema", Config)
ConfigStore.instance().store("compare_schema", CompareConfig)


def with_rules(arguments: list[str]) -> list[str]:
    """The arguments with `+algo@rules.<name>=<name>` for each name in `algos`.

    Hydra's defaults list can't iterate over a setting; this makes it compose each rule's file, so
    that `rules.npg.max_kl=0.05` overrides it like any other setting.
    """
    default: Any = OmegaConf.load(cli.CONFIGS / "compare.yaml")
    names: Any = list(default.algos)
    for argument in arguments:
        if argument.startswith("algos="):
            names = OverridesParser.create().parse_override(argument).value()
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"{argument}: write a list of names, algos=[pg,npg]")
    rules = [f"+algo@rules.{name}={name}" for name in dict.fromkeys(names)]
    # Hydra's parser wants all overrides in a row.
    overrides = (i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-"))
    i = next(overrides, len(arguments))
    return [*arguments[:i], *rules, *arguments[i:]]


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare")
def main(cfg: DictConfig) -> None:
    """One comparison."""
    with cli.one_line_errors():
        start = time.perf_counter()
        check_settings(cfg)
        cfg = cfg if cfg.run is None else with_parts_of_run(cfg)
        OmegaConf.resolve(cfg)
        frozen, rows = run(cfg)
        text = f"{cfg.env.id}, seed {cfg.seed}: {frozen}\n\n{markdown(rows)}"
        print(text)
        folder = Path(cfg.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(text, encoding="utf-8")
        write_csv(folder / "metrics.csv", rows)
        figure = draw(f"What one update is worth: {cfg.env.id}, seed {cfg.seed}", frozen, rows)
        figure.savefig(folder / "compare.png")
        print(f"{time.perf_counter() - start:.0f} s, wrote {folder}")


def check_settings(cfg: DictConfig) -> None:
    """This command's own settings; the rest is checked where it is used."""
    cli.require("compare.py", "matplotlib.figure")
    refuse_unknown(cfg, schema_keys(CompareConfig))
    refuse_unread(cfg)
    sources.refuse_unread()
    if not cfg.rules:
        raise ConfigError("algos=[] names no rule: write algos=[pg,npg]")
    try:
        check.whole(2, episodes=cfg.episodes)
        check.whole(0, warmup_steps=cfg.warmup_steps)
        check.one_of(["last", "best"], run_checkpoint=cfg.run_checkpoint)
        check.positive(**{f"kls[{i}]": kl for i, kl in enumerate(cfg.kls)})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def refuse_unread(cfg: DictConfig) -> None:
    """Refuse settings of train.py that a comparison does not read.

    Raises:
        ConfigError: the command line has one.
    """
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").split("=")[0]
        if key == "total_steps":
            raise ConfigError(f"{override}: the warm-up's length is warmup_steps=...")
        if key.split(".")[0] in UNREAD:
            raise ConfigError(f"{override}: compare.py does not read it, leave it out")
        if cfg.run is not None and key.split(".")[0] in OF_WARMUP:
            raise ConfigError(f"{override}: run={cfg.run} has no warm-up, leave one of them out")


def with_parts_of_run(cfg: DictConfig) -> DictConfig:
    """The config with the parts that made a run's policy and batches in place of its own."""
    run_cfg = read_config(Path(cfg.run))
    for override in HydraConfig.get().overrides.task:
        if override.lstrip("+~").split("=")[0].split(".")[0] in FROM_RUN:
            raise ConfigError(f"{override}: run={cfg.run} decides it, leave one of them out")
    own: Any = OmegaConf.to_container(cfg, resolve=False)
    return OmegaConf.create({**own, **{key: run_cfg[key] for key in FROM_RUN}})


def run(cfg: DictConfig) -> tuple[str, list[Row]]:
    """What was frozen, in words, and the rows."""
    folder = Path(cfg.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output={folder} exists already: name another folder")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(without_evaluation(cfg), Path(scratch))
        rules = {name: functools.partial(make_rule, cfg, name) for name in cfg.rules}
        for make_one in rules.values():
            make_one(copy.deepcopy(trainer.policy))  # a wrong setting ends it here
        origin = prepare(trainer, cfg)
        policy, batch = freeze(trainer)
        trainer.logger.close()

    seed = derive_seed(cfg.seed, STREAM)
    sampled_returns = functools.partial(episode_returns, env=fresh_env(cfg), seed=seed)
    mdp = transition_table(cfg.env.id, cfg.env.kwargs, cfg.env.max_episode_steps)
    if isinstance(policy, RecurrentPolicy):
        mdp = None  # it acts on histories, of which there is no table
    exact = functools.partial(exact_return, mdp) if mdp is not None else None
    steps = {name: step_of(rule, policy, batch, seed) for name, rule in rules.items()}
    rows = compare(policy, batch, steps, list(cfg.kls), sampled_returns, exact)
    old = sampled_returns(policy)
    frozen = f"{origin}, mean return {old.mean():.4g} ± {half_width(old):.2g} "
    return f"{frozen}({cfg.episodes} episodes); one batch of {len(batch)} steps", rows


def without_evaluation(cfg: DictConfig) -> DictConfig:
    """The config of a training run that evaluates as little as it can."""
    cfg = copy.deepcopy(cfg)
    cfg.total_steps = max(cfg.warmup_steps, 1)
    cfg.stop_at_return, cfg.eval.every, cfg.eval.final_episodes = None, cfg.total_steps, 1
    return cfg


def make_rule(cfg: DictConfig, name: str, policy: Any) -> Any:
    """A fresh rule of `cfg.rules.<name>`; mistakes are named rules.<name>.<setting>."""
    section = f"rules.{name}"
    return make(OmegaConf.create({section: cfg.rules[name]}), section, policy)


def prepare(trainer: Any, cfg: DictConfig) -> str:
    """Bring the policy and the baseline to where they are frozen; says where that is."""
    if cfg.run is not None:
        path = Path(cfg.run) / "checkpoints" / f"{cfg.run_checkpoint}.pt"
        try:
            state = checkpoint.load(path, cfg.device)
            trainer.policy.load_state_dict(state["policy"])
            trainer.baseline.load_state_dict(state["baseline"])
            return f"policy of {path.name} at {state['env_steps']} steps"
        except (ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"{path}: {one_line(error)}") from error
    if cfg.warmup_steps == 0:
        return "fresh policy"
    trainer.train()
    choices: Any = HydraConfig.get().runtime.choices
    return f"policy after {trainer.env_steps} steps of {choices['algo']}"


def fresh_env(cfg: DictConfig) -> Any:
    """One environment for each episode; a process for each would be too many."""
    cfg = copy.deepcopy(cfg)
    cfg.env.num_envs = cfg.episodes
    cfg.env.backend = "sync" if cfg.env.backend == "async" else cfg.env.backend
    return make_env(cfg)


# Table


def is_own(row: Row) -> bool:
    """Whether the row is of the step that the rule took, not of a scaled one."""
    return math.isnan(row["target_kl"])


def markdown(rows: list[Row]) -> str:
    """The rules' own steps, as a table that reads as plain text too."""
    cells = [HEADER, *(table_row(row) for row in rows if is_own(row))]
    if "exact_change" not in rows[0]:
        cells = [row[:-1] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "".join(f"| {line} |\n" for line in lines)


def table_row(row: Row) -> list[str]:
    """A row's cells, in the order of HEADER."""
    return [
        row["rule"],
        *(f"{row[name.lower().replace(' ', '_')]:.3g}" for name in FIGURES),
        f"{row['return_change']:+.4g} ± {row['half_width']:.2g}",
        f"± {row['half_width_unpaired']:.2g}",
        f"{row.get('exact_change', math.nan):+.4g}",
    ]


def write_csv(path: Path, rows: list[Row]) -> None:
    """All rows, the scaled steps too; empty where a row lacks a figure."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


# Figure


def draw(title: str, frozen: str, rows: list[Row]) -> Figure:
    """Change of the return against KL: a curve with its band, and a point for the rule's step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color="black", lw=0.8)
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    for i, rule in enumerate(rules):
        colour, line = (
            COLOURS[i % len(COLOURS)],
            [(0, (4, 3)), "-"][i % 2],
        )  # two that coincide show both
        draw_rule(ax, [row for row in rows if row["rule"] == rule], colour, line)
    how = "exact" if "exact_change" in rows[0] else "paired episodes, 95% intervals"
    ax.set(
        xscale="log",
        xlabel=r"measured $\mathrm{KL}(\pi_{\mathrm{old}}\,\|\,\pi_{\mathrm{new}})$ on the batch "
        "(nats)\ncurves: each rule's step, scaled to this KL; points: the step that it took",
        ylabel=f"change of mean return\n({how})",
    )
    ax.set_title(frozen, fontsize=9, color="#555555")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    figure.suptitle(title)
    return figure


def draw_rule(ax: Axes, rows: list[Row], colour: str, line: Any) -> None:
    """One rule's curve and point; the exact change, without a band, where it is known."""
    for own in (False, True):
        points = sorted((row for row in rows if is_own(row) == own), key=lambda row: row["kl"])
        kl = [row["kl"] for row in points]
        y = [row["exact_change" if "exact_change" in row else "return_change"] for row in points]
        width = [0.0 if "exact_change" in row else row["half_width"] for row in points]
        if own:
            style: dict[str, Any] = {"fmt": "o", "ms": 7, "mec": "white", "capsize": 3, "zorder": 4}
            ax.errorbar(kl, y, width, color=colour, **style)
        else:
            ax.plot(kl, y, color=colour, ls=line, lw=1.8, label=rows[0]["rule"])
            low = [a - b for a, b in zip(y, width, strict=True)]
            high = [a + b for a, b in zip(y, width, strict=True)]
            ax.fill_between(kl, low, high, color=colour, alpha=0.15, lw=0)


if __name__ == "__main__":
    with cli.one_line_errors():
        sys.argv[1:] = with_rules(sys.argv[1:])
    cli.run(main)
