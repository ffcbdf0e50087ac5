"""docs/results.md and .png, and the README's table, from the records of docs/results.json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from published import PUBLISHED, Published, verdict

from rlopt.report.stats import Estimate, estimate, first_reached, iqm

matplotlib.use("agg")
from matplotlib import pyplot as plt

Array = NDArray[np.float64]
Records = dict[str, dict[str, Any]]
Groups = dict[tuple[str, str], list[dict[str, Any]]]
SOLVED, IN_A_ROW = 475, 5  # CartPole-v1
COLUMNS = 4
TUNED = Path(__file__).resolve().parent.parent / "configs" / "tuned"
RULES = ["pg", "npg", "trpo", "ppo", "ppo_clip"]
START, END = "<!-- made by benchmarks/results.py -->\n", "<!-- end -->\n"  # of the README's table


@dataclass(frozen=True)
class Row:
    """The runs of one rule on one environment, up to a number of steps.

    Attributes:
        training: each run's return over the last tenth of the steps, actions sampled.
        evaluation: each run's, deterministic.
        episodes: of an evaluation.
        minutes: median wall time of the whole runs.
    """

    env: str
    algo: str
    steps: int
    training: list[float]
    evaluation: list[float]
    episodes: int
    minutes: float
    commits: list[str]

    @property
    def published(self) -> Published | None:
        """What to compare with, if there is something."""
        return PUBLISHED.get((self.env, self.algo, self.steps))


def write(records: Records, docs: Path, readme: Path) -> None:
    """Both files and the README's table, of whatever has been recorded."""
    sections = [HEADER.format(total=hours(records))]
    for found, text in ((shipped(records), SHIPPED), (groups(records, "defaults"), DEFAULTS)):
        if found:
            sections.append(text + table(list(rows_of(found))))
    if any(key.startswith("first_crossing/") for key in records):
        sections.append(crossings(records))
    sections.append(REPEAT)
    draw(records, docs / "results.png")
    (docs / "results.md").write_text("\n".join(sections))
    before, _, rest = readme.read_text().partition(START)
    readme.write_text(before + START + summary(records) + END + rest.partition(END)[2])


def summary(records: Records) -> str:
    """A line for each environment, a column for each rule: evaluation return as shipped."""
    found = shipped(records)
    complete = max(map(len, found.values()), default=0)

    def cell(values: list[float]) -> str:
        few = f" ({len(values)} of {complete} seeds)" if len(values) < complete else ""
        return spread(values) + few

    rules = sorted({algo for _, algo in found}, key=RULES.index)
    lines = [f"| environment | steps | {' | '.join(rules)} |", "|---" * (len(rules) + 2) + "|"]
    for env in dict.fromkeys(env for env, _ in found):
        rows = {row.algo: row for row in rows_of({k: v for k, v in found.items() if k[0] == env})}
        cells = [cell(rows[rule].evaluation) if rule in rows else "" for rule in rules]
        steps = max(row.steps for row in rows.values()) / 1e6
        lines.append(f"| {env} | {steps:g}M | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shipped(records: Records) -> Groups:
    """What a user gets: the runs of the tuned file where there is one, else of the defaults."""
    defaults = groups(records, "defaults").items()
    untuned = {(e, a): runs for (e, a), runs in defaults if not has_tuned_file(e, a)}
    return ordered({**untuned, **groups(records, "tuned")})


def has_tuned_file(env: str, algo: str) -> bool:
    """Whether settings of their own ship for a rule on an environment."""
    return (TUNED / algo / f"{env}.yaml").is_file()


def groups(records: Records, settings: str) -> Groups:
    """The records of a kind of settings by environment and rule."""
    found: Groups = {}
    for key, record in records.items():
        kind, env, algo, _ = key.split("/")
        if kind == settings:
            found.setdefault((env, algo), []).append(record)
    return ordered(found)


def ordered(found: Groups) -> Groups:
    """By the number of steps, then by name."""
    return dict(sorted(found.items(), key=lambda item: (item[1][0]["budget"], item[0])))


def rows_of(found: Groups) -> Iterator[Row]:
    """A row for each rule at its budget, and at fewer steps where something is published."""
    for (env, algo), runs in found.items():
        budget = runs[0]["budget"]
        sooner = [s for e, a, s in PUBLISHED if (e, a) == (env, algo) and s < budget]
        for steps in [*sorted(sooner), budget]:
            whole = steps == budget
            yield Row(
                env,
                algo,
                steps,
                [last_tenth(run, steps) for run in runs],
                [run["eval_return"] if whole else evaluation_at(run, steps) for run in runs],
                runs[0]["eval_episodes"] if whole else 10,
                float(np.median([run["wall_seconds"] for run in runs])) / 60,
                sorted({run["commit"][:7] for run in runs}),
            )


def last_tenth(run: dict[str, Any], steps: int) -> float:
    """Mean training return from 0.9 `steps` to `steps`."""
    x, y = np.array(run["steps"]), np.array(run["train_returns"])
    return float(y[(x > 0.9 * steps) & (x <= steps)].mean())


def evaluation_at(run: dict[str, Any], steps: int) -> float:
    """The last evaluation of a run up to some steps, one iteration's overshoot allowed."""
    x, y = np.array(run["eval_steps"]), np.array(run["eval_returns"])
    return float(y[x <= 1.02 * steps][-1])


def table(rows: list[Row]) -> str:
    """A markdown table."""
    lines = [
        "| environment | rule | steps | seeds | training return | IQM | evaluation return | IQM "
        "| worst | published | ours is | minutes | commit |",
        "|---" * 13 + "|",
    ]
    for row in rows:
        reference, compared = row.published, ""
        if reference is not None:
            ours = row.training if reference.metric == "training" else row.evaluation
            compared = verdict(ours, reference)
        lines.append(
            f"| {row.env} | {row.algo} | {row.steps / 1e6:g}M | {len(row.training)} "
            f"| {spread(row.training)} | {interval(row.training)} "
            f"| {spread(row.evaluation)} | {interval(row.evaluation)} "
            f"| {number(min(row.evaluation))} | {described(reference)} | {compared} "
            f"| {row.minutes:.1f} | {', '.join(row.commits)} |"
        )
    return "\n".join(lines) + "\n"


def number(x: float) -> str:
    """Three digits or more, as the size asks."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.1f}"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation between seeds; of one seed its value."""
    std = f" ± {number(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
    return f"{number(float(np.mean(values)))}{std}"


def interval(values: list[float]) -> str:
    """Interquartile mean (95% interval); of one seed nothing."""
    if len(values) == 1:
        return ""
    found: Estimate = estimate(iqm, np.array(values))
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"


def described(reference: Published | None) -> str:
    """A published figure with its metric and source."""
    if reference is None:
        return ""
    std = "" if math.isnan(reference.std) else f" ± {number(reference.std)}"
    return f"{number(reference.mean)}{std}, {reference.metric}: {reference.source}"


def crossings(records: Records) -> str:
    """When CartPole-v1 is first solved, and stays so for some evaluations."""
    lines = [
        "| rule | seeds | first at 475 | slowest | five in a row | slowest |",
        "|---" * 6 + "|",
    ]
    for (_, algo), runs in groups(records, "first_crossing").items():
        firsts, rows = [], []
        for run in runs:
            x, y = np.array(run["eval_steps"], float), np.array(run["eval_returns"])
            firsts.append(first_reached(x, y, SOLVED))
            rows.append(first_reached(x, lowest_of_last(y, IN_A_ROW), SOLVED))
        cells = [f"{steps(np.mean(v))} | {steps(max(v))}" for v in (firsts, rows)]
        lines.append(f"| {algo} | {len(runs)} | {' | '.join(cells)} |")
    return CROSSINGS + "\n".join(lines) + "\n"


def lowest_of_last(y: Array, n: int) -> Array:
    """The lowest of each value and the n - 1 before it; minus infinity where there are fewer."""
    padded = np.concatenate([np.full(n - 1, -np.inf), y])
    return np.lib.stride_tricks.sliding_window_view(padded, n).min(-1)


def steps(x: float) -> str:
    """A number of steps, or that some seed never did it."""
    return f"{x:,.0f}" if math.isfinite(x) else "not by every seed"


def thinned(x: Array, y: Array, points: int) -> tuple[Array, Array]:
    """A curve at evenly spaced places; as it is where it has no more points than that."""
    if len(x) <= points:
        return x, y
    grid = np.linspace(x[0], x[-1], points)
    return grid, np.interp(grid, x, y)


def draw(records: Records, path: Path) -> None:
    """Training return against steps: mean over seeds and their range; tuned, else defaults."""
    found = shipped(records)
    envs = list(dict.fromkeys(env for env, _ in found))
    if not envs:
        return
    height = math.ceil(len(envs) / COLUMNS)
    figure, axes = plt.subplots(
        height, COLUMNS, figsize=(4 * COLUMNS, 3.1 * height), squeeze=False, layout="constrained"
    )
    rules = sorted({algo for _, algo in found}, key=RULES.index)
    for axis in axes.flat[len(envs) :]:
        axis.set_axis_off()
    for axis, env in zip(axes.flat, envs, strict=False):
        for (e, algo), runs in found.items():
            if e == env:
                draw_band(axis, runs, algo, f"C{rules.index(algo)}")
        axis.set(title=env, xlabel="environment steps", ylabel="training return")
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        axis.grid(alpha=0.3)
    handles = [plt.Line2D([], [], color=f"C{i}", label=rule) for i, rule in enumerate(rules)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(rules), frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_band(axis: plt.Axes, runs: list[dict[str, Any]], label: str, color: str) -> None:
    """Mean line and min-max band of several curves, on a common grid of steps."""
    start, stop = max(r["steps"][0] for r in runs), min(r["steps"][-1] for r in runs)
    grid = np.linspace(start, stop, 200)
    values = np.array([np.interp(grid, r["steps"], r["train_returns"]) for r in runs])
    axis.plot(grid, values.mean(0), label=label, color=color)
    axis.fill_between(grid, values.min(0), values.max(0), alpha=0.15, color=color, lw=0)


def hours(records: Records) -> str:
    """Wall time of all runs together."""
    return f"{sum(record['wall_seconds'] for record in records.values()) / 3600:.1f}"


HEADER = """# Results

Made by `python benchmarks/results.py` on seeds 0-4; nothing was chosen on these seeds
([how it was chosen](#how-the-settings-were-chosen)). *Training return*: mean over the last tenth of
the steps, actions sampled (each point of the curve is the mean of the last 100 episodes; on
BipedalWalker-v3 as shipped with a fall at -40, which is -100 in every evaluation).
*Evaluation return*: most probable actions, 100 episodes of the final policy (10 where the steps are
not yet the run's last). Mean ± standard deviation between seeds; *IQM*: interquartile mean over
seeds with its 95% bootstrap interval; *worst*: the seed of the lowest evaluation. *Published*: the
highest figure in benchmarks/published.py for that rule and that many steps (for `ppo`, of PPO with
clip or with KL penalty), whose own metric decides which of ours it is held against: *above* and
*below* are beyond the combined standard error. That list does not hold all that is published.
*Minutes*: median wall time of a run, two runs at a time on two cores, other work beside them. All
runs together took {total} hours.

**Which environment.** These runs had EnvPool installed. Those of Ant-v4, Humanoid-v4,
LunarLander-v3, LunarLanderContinuous-v3 and BipedalWalker-v3 (but for its tuned files, which have a
wrapper) are of EnvPool's implementations. A [comparison](backends.md) made since has found that
these differ from Gymnasium's with the pinned packages, or could not compare them, so the same
command now trains Gymnasium's environment; `env.backend=envpool` trains the one of the table.

![training curves](results.png)
"""
SHIPPED = """## As shipped

With the tuned file where there is one (configs/tuned/), else the defaults.

"""
DEFAULTS = """## Defaults alone

The same without any tuned file (`~tuned`).

"""
CROSSINGS = f"""## CartPole-v1, steps to the first solution

As shipped, with an evaluation of 10 deterministic episodes every 1000 steps
(`eval.every=1000`): steps at the first mean return of {SOLVED}, and at the last of the first five
evaluations in a row of at least that; means over seeds, and the slowest seed. Published, means of 5
seeds: SB3 A2C 12.8k, rlox PPO 21.5k, SB3 PPO 33.8k; five in a row 31-81k, some seeds never.

"""
REPEAT = """## How the settings were chosen

On seeds 100 and above, never on those of the tables; where a table fell short of its aim the search
went on (BipedalWalker-v3, and Hopper-v4 with npg and trpo). See [tuning.md](tuning.md).

## Repeat

    pip install -c constraints.txt -e '.[bench,envpool,mujoco,box2d]'
    python benchmarks/results.py --env Pendulum-v1 --algo trpo --repeat      one row, anew
    python benchmarks/results.py                                             what results.json lacks

Each run's command and commit are in [results.json](results.json), with its curve.
"""
