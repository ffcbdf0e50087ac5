"""docs/performance.md and .png from the entries of docs/performance.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jobs import PAIRS, TARGETS, describe
from performance_notes import (
    FISHER_NOTES,
    HEADER,
    OUR_NOTES,
    PAIR_NOTES,
    PEER_NOTES,
    PHASE_NOTES,
    REPEAT,
)

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

Entry = dict[str, Any]

PEERS = {
    ("tianshou", "npg"): "Tianshou",
    ("tianshou", "trpo"): "Tianshou",
    ("sb3", "trpo"): "sb3-contrib",
    ("sb3", "ppo"): "SB3",
    ("rejax", "ppo"): "rejax",
}
BARS = {"ours": ("ours", "C0"), "peer": ("", "0.6"), "shipped": ("ours as\nshipped", "#a6cbe3")}


def write(results: dict[str, Entry], docs: Path) -> None:
    """Both files, of whatever has been measured."""
    pairs = {name: results[name] for name in PAIRS if name in results}
    sections = [HEADER]
    if pairs:
        draw(pairs, docs / "performance.png")
        sections += ["![steps per second](performance.png)\n", pair_table(pairs)]
    if "phases" in results and pairs:
        sections.append(phase_section(results["phases"]["profiles"], pairs))
    if "raw" in results:
        sections.append(raw_section(results["raw"]))
    if "fisher" in results:
        sections.append(fisher_section(results["fisher"]))
    if "audits" in results:
        sections.append(audit_section(results["audits"]["audits"]))
    if "startup" in results:
        sections.append(startup_section(results["startup"]))
    if "ranks" in results:
        sections.append(ranks_section(results["ranks"]))
    if pairs:
        sections.append(setups(pairs))
    sections.append(REPEAT)
    (docs / "performance.md").write_text("\n".join(sections))


def speeds(entry: Entry, contender: str) -> np.ndarray:
    """Steps/s of each turn."""
    return np.array([turn[contender]["steps_per_second"] for turn in entry["turns"]])


def ratio(entry: Entry, above: str, below: str) -> np.ndarray:
    """Ratios, turn by turn."""
    return speeds(entry, above) / speeds(entry, below)


def spread(values: np.ndarray, digits: int = 1) -> str:
    """Median, with minimum and maximum."""
    low, high = values.min(), values.max()
    return f"{np.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def median(entry: Entry, contender: str) -> str:
    """The median of the steps/s."""
    return f"{np.median(speeds(entry, contender)):,.0f}"


def peer_name(entry: Entry) -> str:
    """What the peer of a pair is called."""
    return PEERS[entry["peer"], entry["work"]["algo"]]


def title(work: Entry) -> str:
    """A pair in short."""
    return f"{work['algo'].upper()}, {work['env']}, {work['num_envs']} x {work['num_steps']}"


def pair_table(pairs: dict[str, Entry]) -> str:
    """A row for each pair."""
    rows = [
        "## The same work\n",
        "| | ours, steps/s | peer, steps/s | ours / peer | raw environment, steps/s | ours / raw "
        "| ours as shipped, steps/s |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {title(e['work'])} | {median(e, 'ours')} | {peer_name(e)} {median(e, 'peer')} "
        f"| {spread(ratio(e, 'ours', 'peer'))} | {median(e, 'raw')} "
        f"| {np.median(ratio(e, 'ours', 'raw')):.0%} | {median(e, 'shipped')} |"
        for e in pairs.values()
    ]
    return "\n".join(rows) + "\n" + PAIR_NOTES


def phase_section(profiles: dict[str, Entry], pairs: dict[str, Entry]) -> str:
    """Milliseconds of an iteration beside what the target and the machine leave."""
    phases = {
        "environment": ["environment"],
        "acting": ["acting"],
        "rule": ["rule"],
        "critic": ["critic"],
        "other": ["sampling", "advantages", "update", "rest"],
    }
    header = f"| | target | leaves | ours | {' | '.join(phases)} | floor |"
    rows = ["## Where the time goes\n", header, "|---" * (5 + len(phases)) + "|"]
    for name, entry in pairs.items():
        profile = profiles[name]
        ms = profile["milliseconds"]
        target = TARGETS[name] * np.median(speeds(entry, "peer"))
        parts = " | ".join(f"{sum(ms[p] for p in group):.0f}" for group in phases.values())
        rows.append(
            f"| {title(entry['work'])} | {TARGETS[name]}x {peer_name(entry)}, {target:,.0f} "
            f"| {1000 * profile['steps'] / target:.0f} | {ms['iteration']:.0f} | {parts} "
            f"| {sum(profile['floor'].values()):.0f} |"
        )
    return "\n".join(rows) + "\n" + PHASE_NOTES


def audit_section(audits: list[Entry]) -> str:
    """The audit's share of an iteration."""
    shares = (f"{a['algo']} {100 * (np.median(a['ratios']) - 1):.1f}" for a in audits)
    return f"""## The audit

The audit of every update (`diagnostics=true`) adds to an iteration of CartPole-v1 as shipped, in %,
median over iterations with and without it in turn: {", ".join(shares)}.
"""


def raw_section(entry: Entry) -> str:
    """The share of raw stepping that a run with evaluation and logging reaches."""
    share = 100 * ratio(entry, "shipped", "raw")
    trained = entry["turns"][0]["shipped"]
    return f"""## Against the environment alone

`algo=npg env=HalfCheetah-v4` as shipped ({trained["num_envs"]} environments, {trained["backend"]}),
100k steps at the least, evaluations and logging included: {median(entry, "shipped")} training
steps/s; the same vector environment alone at random actions: {median(entry, "raw")}. Share, turn by
turn: {spread(share, 0)} %. The steps of the evaluations are not counted, their time is.
"""


def fisher_section(entry: Entry) -> str:
    """Times and ratios of one Fisher product."""
    rows = [
        f"## A Fisher product, batch {entry['batch']}\n",
        "| problem | threads | ours, ms | double backprop, ms | its matmuls alone, ms "
        "| double backprop / ours | ours / matmuls |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in entry["rows"]:
        ms = row["milliseconds"]
        double, matmuls = row["double / ours"], row["ours / matmuls"]
        rows.append(
            f"| {row['problem']} | {row['threads']} | {ms['ours']:.1f} | {ms['double']:.1f} "
            f"| {ms['matmuls']:.1f} | {double[0]:.2f} ({double[1]:.2f}-{double[2]:.2f}) "
            f"| {matmuls[0]:.2f} ({matmuls[1]:.2f}-{matmuls[2]:.2f}) |"
        )
    difference = max(row["relative difference"] for row in entry["rows"])
    return "\n".join(rows) + FISHER_NOTES.format(difference=difference)


def ranks_section(entry: Entry) -> str:
    """Two processes against one, and what two processes are worth on this machine at all."""
    speedups = np.array(
        [turn[name]["parallel_speedup"] for turn in entry["turns"] for name in turn]
    )
    return (
        "## Two processes\n\n"
        f"`algo=npg env=HalfCheetah-v4` on batches of 64k transitions: one process "
        f"{median(entry, 'one')} steps/s, two processes of torchrun {median(entry, 'two')}; "
        f"turn by turn two / one is {spread(ratio(entry, 'two', 'one'), 2)}.\n"
        f"Two processes that only count reach {spread(speedups, 2)} times what one does alone: "
        "2 where both cores are there to be had.\n"
    )


def startup_section(entry: Entry) -> str:
    """Median seconds of a whole process."""
    first = [run["first_update"] or math.inf for run in entry["runs"]]
    solved = [run["solved"] or math.inf for run in entry["runs"]]
    steps = np.median([run["env_steps"] or math.inf for run in entry["runs"]])
    return f"""## From the start of the process

`python scripts/train.py algo=npg env=CartPole-v1`, {len(first)} seeds, median (minimum-maximum)
seconds of wall time: first iteration finished {spread(np.array(first))}, mean return of the last
100 training episodes at 475 {spread(np.array(solved))}, after {steps:,.0f} steps. Taken from
outside, from the start of the interpreter to the row of `metrics.csv`.
"""


def setups(pairs: dict[str, Entry]) -> str:
    """What each pair did and what its peer was given."""
    machine = next(iter(pairs.values()))["machine"]
    lines = ["## Set-ups\n", OUR_NOTES.format(cores=machine["cores"], **listed(machine))]
    for name, notes in PEER_NOTES.items():
        entries = [entry for entry in pairs.values() if entry["peer"] == name]
        if entries:
            lines.append(notes.format(**listed(entries[0]["turns"][0]["peer"])))
            lines += [f"- {title(e['work'])}: {describe(e['work'])}. {trials(e)}." for e in entries]
            lines.append("")
    return "\n".join(lines)


def listed(result: Entry) -> dict[str, str]:
    """Versions in one line."""
    return {"packages": ", ".join(f"{k} {v}" for k, v in result["versions"].items())}


def trials(entry: Entry) -> str:
    """The set-up that the peer was given and those that it was chosen from."""
    tried = [f"{setup(t['setup'])} {t['steps_per_second']:,.0f}" for t in entry["tried"]]
    return f"Given {setup(entry['setup'])}; tried, in steps/s: {', '.join(tried)}"


def setup(settings: Entry) -> str:
    """A set-up in words."""
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    return f"{settings['envs']} on {threads}"


def draw(pairs: dict[str, Entry], path: Path) -> None:
    """Steps/s of each pair, a panel each."""
    rows = math.ceil(len(pairs) / 3)
    figure, axes = plt.subplots(rows, 3, figsize=(10, 2.9 * rows), squeeze=False)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    for axis, entry in zip(axes.flat, pairs.values(), strict=False):
        draw_pair(axis, entry)
    for axis in axes[:, 0]:
        axis.set_ylabel("steps/s")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_pair(axis: plt.Axes, entry: Entry) -> None:
    """Medians, and the range of the turns."""
    labels = [label or peer_name(entry) for label, _ in BARS.values()]
    values = [speeds(entry, contender) for contender in BARS]
    heights = np.array([np.median(v) for v in values])
    errors = [heights - [v.min() for v in values], [v.max() for v in values] - heights]
    colors = [color for _, color in BARS.values()]
    bars = axis.bar(labels, heights, yerr=errors, color=colors, ecolor="0.3", capsize=3)
    axis.bar_label(bars, [f"{h / 1000:.1f}k" for h in heights], padding=2)
    axis.set_title(title(entry["work"]), fontsize=10)
    axis.margins(y=0.2)
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(lambda y, _: f"{y / 1000:.0f}k")
    axis.spines[["top", "right"]].set_visible(False)
