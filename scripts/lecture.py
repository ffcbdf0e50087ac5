"""Run the lecture's statements: one table, four figures, exit code 1 on any FAIL.

python scripts/lecture.py                        everything, to outputs/lecture/
python scripts/lecture.py two_action_example     only the statements named
python scripts/lecture.py --seed 1               with other policies, MDPs and trajectories
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

try:
    import scipy  # noqa: F401
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    sys.exit(f"error: lecture.py needs a package: pip install -e '.[bench]' ({error})")

from rlopt.lecture import STATEMENTS, Result, slide
from rlopt.rows import Row, guarded, tolerance

HEADER = ["statement", "slide", "figure", "measured", "tolerance", "verdict"]
BLUE, RED, GREY = "#1f5fa8", "#c8442c", "#777777"


# Table


def run(statement: Callable[[int], Result], seed: int) -> Result:
    """A statement's result; one that raises is a FAIL that says why, not the end of the table."""
    data: dict[str, Any] = {}

    def rows() -> list[Row]:
        result = statement(seed)
        data.update(result.data)
        return result.rows

    return Result(guarded(rows), data)


def table(
    statements: Sequence[Callable[[int], Result]], results: Sequence[Result]
) -> list[list[str]]:
    """The cells of all rows, without the header."""
    return [
        [
            statement.__name__.replace("_", " "),
            slide(statement),
            row.figure,
            f"{row.value:.3g}",
            tolerance(row),
            row.verdict,
        ]
        for statement, result in zip(statements, results, strict=True)
        for row in result.rows
    ]


def markdown(cells: list[list[str]]) -> str:
    """The table in markdown, its columns aligned so that it reads as plain text too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in [HEADER, *cells]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


# Figures


def new_figure(width: float, panels: int) -> tuple[Figure, list[Axes]]:
    """An empty figure of some panels side by side."""
    figure = Figure(figsize=(width, 3.8), dpi=150, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


def two_actions_figure(data: dict[str, Any]) -> Figure:
    """The iterates on J(theta), and theta and J over the iterations."""
    figure, (curve, theta, J) = new_figure(12, 3)
    x = torch.linspace(-2, 10.5, 200)
    curve.plot(x, 1 + 99 * x.sigmoid(), color=GREY, lw=1)
    for name, color, marker in (("PG", BLUE, "s"), ("NPG", RED, "o")):
        style: dict[str, Any] = {"color": color, "marker": marker, "ms": 4, "label": name}
        curve.plot(data["theta"][name], data["J"][name], ls="", **style)
        theta.plot(data["theta"][name], **style)
        J.plot(data["J"][name], **style)
    curve.set(xlabel=r"$\theta$", ylabel=r"$J(\theta)$ (reward)", title="20 steps of each")
    theta.set(xlabel="iteration", ylabel=r"$\theta$", title=r"NPG moves by $99\,\eta$ every step")
    J.set(xlabel="iteration", ylabel=r"$J(\theta)$ (reward)", title=rf"$\eta$ = {data['eta']}")
    curve.legend(frameon=False, loc="lower right")
    theta.legend(frameon=False, loc="upper left")
    J.legend(frameon=False, loc="lower right")
    return figure


def npg_to_trpo_figure(data: dict[str, Any]) -> Figure:
    """The length of TRPO's step and its difference from NPG's against the radius."""
    figure, (ax,) = new_figure(6, 1)
    radius = data["radius"]
    for label, y, slope, style in (
        ("TRPO's step", data["trpo"], 0.5, {"color": GREY, "marker": "s"}),
        ("TRPO's step minus NPG's", data["difference"], 1.0, {"color": RED, "marker": "o"}),
    ):
        # The guide meets the points where the radius is smallest.
        ax.loglog(radius, y[-1] * (radius / radius[-1]) ** slope, color=style["color"], lw=1)
        ax.loglog(radius, y, ls="", ms=5, label=f"{label} (line: slope {slope:g})", **style)
    ax.set(
        xlabel=r"radius $\delta$ of the trajectory KL (nats)",
        ylabel=r"length $\sqrt{x^\top F\, x}$",
        title=f"NPG is TRPO to leading order: measured slope {data['order']:.3f}",
    )
    ax.legend(frameon=False, loc="lower right")
    return figure


def degradation_figure(data: dict[str, Any]) -> Figure:
    """Change of the value against its lower bound, and the MDP that reaches it."""
    figure, (ax,) = new_figure(6, 1)
    bound, change = data["bound"].flatten(), data["change"].flatten()
    ax.plot(
        bound, change, ".", color=BLUE, ms=3, alpha=0.5, label="300 random MDPs, every start state"
    )
    trap_bound, trap_change = (x[0] for x in data["trap"])
    ax.plot(trap_bound, trap_change, "*", color=RED, ms=14, label="constructed MDP")
    low = float(bound.min())
    ax.plot([low, 0], [low, 0], color="black", lw=1, label="bound: change = $-H|\\Delta_\\infty|$")
    ax.set(
        xlabel=r"$-H\,|\Delta_\infty|$ (reward)",
        ylabel=r"$V^{k+1}(s_0) - V^k(s_0)$ (reward)",
        title="Approximate policy iteration: worst case",
    )
    ax.legend(frameon=False, loc="lower right")
    return figure


def variance_figure(data: dict[str, Any]) -> Figure:
    """The variance of the gradient of one trajectory, baseline by baseline."""
    figure, (ax,) = new_figure(6, 1)
    names = list(data["variance"])
    values = [data["variance"][name] for name in names]
    bars = ax.barh(names, values, color=[BLUE if "V" in n or "fit" in n else GREY for n in names])
    ax.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=3)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(axis="y", visible=False)
    ax.set(
        xlabel="variance of one trajectory's gradient, summed over entries (reward²)",
        ylabel="baseline b",
        title="What a baseline removes (CliffWalking, 8 steps)",
    )
    return figure


FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
    "two_action_example": ("two_actions.png", two_actions_figure),
    "npg_is_trpo_to_leading_order": ("npg_to_trpo.png", npg_to_trpo_figure),
    "degradation_bound": ("api_bound.png", degradation_figure),
    "variance_without_and_with_baseline": ("baseline_variance.png", variance_figure),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit code."""
    by_name = {statement.__name__: statement for statement in STATEMENTS}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="statement", help=", ".join(by_name))
    parser.add_argument("--seed", type=int, default=0, help="of all that the statements draw")
    parser.add_argument("--output", type=Path, default=Path("outputs/lecture"), help="the folder")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in by_name]
    if unknown:
        parser.error(f"unknown statement {', '.join(unknown)}; there are {', '.join(by_name)}")
    if not 0 <= options.seed < 2**31:
        parser.error(f"--seed must be from 0 to {2**31 - 1}, got {options.seed}")

    torch.set_num_threads(1)  # matrices this small are slower on more
    start = time.perf_counter()
    statements = [by_name[name] for name in options.names or by_name]
    results = [run(statement, options.seed) for statement in statements]
    cells = table(statements, results)
    text = markdown(cells)
    print(text)

    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    for statement, result in zip(statements, results, strict=True):
        if result.data and statement.__name__ in FIGURES:
            file_name, draw = FIGURES[statement.__name__]
            draw(result.data).savefig(options.output / file_name)
    failed = sum(row[-1] == "FAIL" for row in cells)
    seconds = time.perf_counter() - start
    print(f"{len(cells)} rows, {failed} FAIL, {seconds:.1f} s; wrote {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
