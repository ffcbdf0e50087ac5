"""The figures of a report, each a matplotlib Figure without a global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlopt.report import stats
from rlopt.report.groups import ALGO, Group
from rlopt.report.stats import Array
from rlopt.report.summary import ALL, Pair, Summary, finals

# Okabe and Ito's eight colours, told apart by every kind of colour vision; yellow is too pale here.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6F00"]
DASHES = ["-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2))]  # so that two that coincide show
GREY = "#9a9a9a"
WIDTH, HEIGHT, COLUMNS = 4.2, 3.1, 3  # of a panel, in inches; panels side by side
MANY_COLUMNS = 6  # of narrow panels
NUM_POINTS = 80
RETURNS = {"eval_return": "evaluation return", "train_return": "training return"}
AXES = {"steps": "environment steps", "seconds": "training time (s)"}


def draw(summary: Summary) -> dict[str, Figure]:
    """All figures that the runs allow, by name."""
    figures = {
        "curves_steps": curves(summary, "steps"),
        "curves_seconds": curves(summary, "seconds"),
        "improvement": improvement(summary),
        "profiles": profiles(summary),
    }
    figures |= {f"sensitivity_{key}": sensitivity(summary, key) for key in summary.swept}
    return {name: figure for name, figure in figures.items() if figure is not None}


def panels(
    titles: Sequence[str], num_blocks: int = 1, height: float = HEIGHT, columns: int = COLUMNS
) -> tuple[Figure, list[Axes]]:
    """An empty figure with a panel for each title, all of them `num_blocks` times."""
    rows = math.ceil(len(titles) / columns)
    used = math.ceil(len(titles) / rows)
    width = WIDTH * used if columns == COLUMNS else 2.2 * used + 3
    figure = Figure(figsize=(max(width, 6), height * rows * num_blocks + 0.5), layout="constrained")
    grid = figure.subplots(rows * num_blocks, used, squeeze=False)
    axes = []
    for block in range(num_blocks):
        cells = grid[block * rows : (block + 1) * rows].reshape(-1)
        for ax, title in zip(cells, titles, strict=False):
            ax.set_title(title, fontsize=11, loc="left", fontweight="bold")
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.25, lw=0.6)
            ax.tick_params(labelsize=9)
            axes.append(ax)
        for ax in cells[len(titles) :]:
            ax.remove()
    return figure, axes


def is_first(ax: Axes) -> bool:
    """Whether the panel is the first of its row."""
    place = ax.get_subplotspec()
    return place is not None and place.is_first_col()


def name_axes(axes: Sequence[Axes], x: str, y: str) -> None:
    """Names for the axes of panels that share them: y beside the first of each row."""
    for ax in axes:
        ax.set_xlabel(x, fontsize=10)
        if is_first(ax):
            ax.set_ylabel(y, fontsize=10)


def style(summary: Summary, label: str) -> dict[str, Any]:
    """The colour and the dashes of a group, the same in every figure."""
    i = summary.labels.index(label)
    if label not in summary.shown:
        return {"color": GREY, "lw": 0.8, "alpha": 0.6}
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "lw": 1.8}


def add_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    found: dict[str, Artist] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    longest = max((len(label) for label in found), default=1)
    columns = max(1, min(len(found), int(figure.get_figwidth() * 11 / (longest + 6))))
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=10,
    )


# Learning curves


def curves(summary: Summary, against: str) -> Figure:
    """Interquartile mean over seeds and its interval; a block of panels for each kind of return."""
    runs = [run for group in summary.groups for run in group.runs]
    kinds = [kind for kind in RETURNS if any(len(run.curve(kind, against)[0]) > 1 for run in runs)]
    kinds = kinds or ["train_return"]
    figure, axes = panels(summary.envs, len(kinds))
    for block, kind in enumerate(kinds):
        own = axes[block * len(summary.envs) :][: len(summary.envs)]
        for ax, env in zip(own, summary.envs, strict=True):
            for group in sorted(summary.of_env(env), key=lambda g: g.label in summary.shown):
                draw_curve(ax, group, summary, kind, against)
            threshold = summary.scales[env].threshold
            if kind == "eval_return" and math.isfinite(threshold):
                ax.axhline(threshold, color="#555555", lw=0.9, ls=":", label="threshold")
            if against == "steps":
                ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        name_axes(own, AXES[against], RETURNS[kind])
    add_legend(figure, axes)
    return figure


def draw_curve(ax: Axes, group: Group, summary: Summary, kind: str, against: str) -> None:
    """The finished runs as one line with a band, the others one by one and thin.

    Where no run is finished, the line is over what all of them have so far.
    """
    drawn = [run for run in group.runs if len(run.curve(kind, against)[0])]
    together = [run for run in drawn if run.status == "finished"] or drawn
    look = style(summary, group.label)
    shown = group.label in summary.shown
    if not drawn:
        return
    grid, values = stats.on_grid([run.curve(kind, against) for run in together], NUM_POINTS)
    for run in drawn:
        if shown and (run not in together or not len(grid)):
            ax.plot(*run.curve(kind, against), color=look["color"], lw=0.7, alpha=0.7)
    if not len(grid):
        return
    if not shown:
        ax.plot(grid, stats.iqm(values), label="other groups", **look)
        return
    few = stats.CURVE_RESAMPLES
    middle, low, high = stats.estimate(stats.iqm, values, num_resamples=few)
    ax.plot(grid, middle, label=group.label, **look)
    ax.fill_between(grid, low, high, color=look["color"], alpha=0.16, lw=0)


# Comparisons


def improvement(summary: Summary) -> Figure | None:
    """Probability of improvement of every pair, a row; None without two groups to compare."""
    names = list(dict.fromkeys((pair.first, pair.second) for pair in summary.pairs))
    envs = [env for env in [*summary.envs, ALL] if any(p.env == env for p in summary.pairs)]
    if not names:
        return None
    figure, axes = panels(envs, height=0.9 + 0.28 * len(names), columns=MANY_COLUMNS)
    for ax, env in zip(axes, envs, strict=True):
        for pair in summary.pairs:
            if pair.env == env:
                draw_pair(ax, -names.index((pair.first, pair.second)), pair)
        ax.axvline(0.5, color="#555555", lw=0.9, ls=":")
        ticks = [f"{a} > {b}" if is_first(ax) else "" for a, b in names]
        ax.set_yticks(range(0, -len(names), -1), ticks)
        ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        ax.set(xlim=(-0.05, 1.05), ylim=(0.6 - len(names), 0.6), xlabel="P(first > second)")
        ax.grid(axis="y", visible=False)
    for word, colour in {"a difference": COLOURS[0], "none shown, or too few seeds": GREY}.items():
        axes[0].plot([], [], "o-", color=colour, label=word)
    add_legend(figure, axes[:1])
    return figure


def draw_pair(ax: Axes, y: float, pair: Pair) -> None:
    """A point with its interval, grey where it shows no difference."""
    value, low, high = pair.estimate
    colour = COLOURS[0] if pair.claimed else GREY
    ax.plot([low, high], [y, y], color=colour, lw=3, alpha=0.5, solid_capstyle="butt")
    ax.plot([value], [y], "o", color=colour, ms=6)


def profiles(summary: Summary) -> Figure | None:
    """Performance profiles over the environments; None where there is one, or no common scale."""
    known = [label for label in summary.complete if np.isfinite(summary.mean_score(label))]
    if len(summary.envs) < 2 or not known:
        return None
    figure, axes = panels([f"{len(summary.envs)} environments"], height=3.6)
    samples = {label: [summary.scores(env, label) for env in summary.envs] for label in known}
    low = min(float(x.min()) for xs in samples.values() for x in xs)
    thresholds = np.linspace(min(low, 0) - 0.01, 1.01, 400)
    for label, scores in samples.items():
        look = style(summary, label)
        share, bottom, top = stats.profile(scores, thresholds)
        axes[0].plot(thresholds, share, label=label, **look)
        axes[0].fill_between(thresholds, bottom, top, color=look["color"], alpha=0.16, lw=0)
    axes[0].set(
        xlabel="score: 0 is the untrained policy, 1 the best run of the environment",
        ylabel="share of runs above it",
        ylim=(-0.02, 1.02),
    )
    add_legend(figure, axes)
    return figure


# Sensitivity


def sensitivity(summary: Summary, key: str) -> Figure:
    """Final evaluations against a swept number: dots are runs, lines the mean of each value."""
    figure, axes = panels(summary.envs)
    algos = sorted({str(group.settings.get(ALGO)) for group in summary.groups})
    for ax, env in zip(axes, summary.envs, strict=True):
        for i, algo in enumerate(algos):
            groups = [g for g in summary.of_env(env) if str(g.settings.get(ALGO)) == algo]
            name = algo.rpartition(".")[2].lower() if len(algos) > 1 else "interquartile mean"
            draw_sensitivity(ax, groups, key, name, COLOURS[i % len(COLOURS)])
        low, high = ax.dataLim.intervalx
        if 0 < low < math.inf and high >= 8 * low:
            ax.set_xscale("log")
    name_axes(axes, key, "final evaluation return")
    add_legend(figure, axes)
    return figure


def draw_sensitivity(ax: Axes, groups: Sequence[Group], key: str, name: str, colour: str) -> None:
    """One algorithm: its runs, and the interquartile mean and interval of each value.

    Groups of the same value are pooled. In a random search every value has its own settings of
    everything else, so that a line through the means would mislead; there is none.
    """
    by_value: dict[float, list[Array]] = {}
    for group in groups:
        if isinstance(group.settings[key], int | float) and len(finals(group)):
            by_value.setdefault(group.settings[key], []).append(finals(group))
    if not by_value:
        return
    values = sorted(by_value)
    pooled = [np.concatenate(by_value[value]) for value in values]
    for value, scores in zip(values, pooled, strict=True):
        ax.plot([value] * len(scores), scores, ".", color=colour, ms=6, alpha=0.35, mew=0)
    middle, low, high = np.array([stats.estimate(stats.iqm, scores) for scores in pooled]).T
    others = {str({k: v for k, v in g.settings.items() if k != key}) for g in groups}
    joined = len(others) < len(groups)
    ax.plot(values, middle, "o-" if joined else "o", color=colour, ms=5, lw=1.8, label=name)
    ax.vlines(values, low, high, color=colour, lw=1.4)
