"""How cost grows: an NPG update with batch and parameters, training with environments.

    python benchmarks/scaling.py                                   about ten minutes
    python benchmarks/scaling.py batch --chunk-size 16384          one part, the others are kept

Every point is a process of its own. Writes docs/scaling.json, and from it docs/scaling.md and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from process import ContenderError, run

matplotlib.use("agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).resolve().parent.parent / "docs"
BATCHES = [1024 * 4**i for i in range(6)]
HIDDEN = {1_000: 20, 10_000: 88, 100_000: 304, 1_000_000: 988, 10_000_000: 3150}
ENVIRONMENTS = {"CartPole-v1": [1, 4, 16, 64, 256, 1024], "HalfCheetah-v4": [1, 4, 16, 64, 128]}
TRANSITIONS, MIN_STEPS = 2048, 16  # of an update where the number of environments varies
Point = dict[str, Any]


def point(script: str, *arguments: str) -> Point:
    """One process; a point that fails is printed and left empty."""
    try:
        result = run(sys.executable, script, *arguments)
    except ContenderError as error:
        result = {}
        print(f"  failed: {error}")
    print(f"  {arguments[-1]}: {result}")
    return result


def measure_batch(args: argparse.Namespace) -> Point:
    """An update of a 64-64 policy against the number of transitions."""
    specs = [{"batch": b, "hidden": 64, "chunk_size": args.chunk_size} for b in BATCHES]
    points = [point("update_cost.py", json.dumps(spec)) for spec in specs]
    return {"chunk_size": args.chunk_size, "points": [p for p in points if p]}


def measure_parameters(args: argparse.Namespace) -> Point:
    """An update on 2048 transitions against the number of parameters."""
    specs = [{"batch": 2048, "hidden": h, "chunk_size": None} for h in HIDDEN.values()]
    points = [point("update_cost.py", json.dumps(spec)) for spec in specs]
    return {"points": [p for p in points if p]}


def measure_environments(args: argparse.Namespace) -> Point:
    """Training steps/s, and those of the environments alone, against their number."""
    results = {}
    for env, numbers in ENVIRONMENTS.items():
        pairs = [(n, train(env, n), raw(env, n)) for n in numbers]
        results[env] = [
            {"num_envs": n, "train": t["steps_per_second"], "raw": r["steps_per_second"]}
            for n, t, r in pairs
            if t and r
        ]
    return results


def train(env: str, num_envs: int) -> Point:
    """NPG as shipped on updates of 2048 transitions (more only for very many environments)."""
    num_steps = max(MIN_STEPS, TRANSITIONS // num_envs)
    overrides = ["algo=npg", f"env={env}", "~tuned", "eval.every=1000000000"]
    overrides += [f"env.num_envs={num_envs}", f"rollout.num_steps={num_steps}"]
    return point("ours.py", "train", json.dumps({"overrides": overrides, "seconds": 5}))


def raw(env: str, num_envs: int) -> Point:
    """The environments alone."""
    return point("ours.py", "raw", json.dumps({"env_id": env, "num_envs": num_envs, "seconds": 2}))


PARTS: dict[str, Callable[[argparse.Namespace], Point]] = {
    "batch": measure_batch,
    "parameters": measure_parameters,
    "environments": measure_environments,
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def update_table(points: list[Point], by: str) -> str:
    """Time, in units that are constant where the cost is linear, and memory of the updates."""
    scale, unit = {
        "batch": (1e6, "µs a transition"),
        "parameters": (1e9 / 2048, "ns a transition and parameter"),
    }[by]
    rows = [
        [
            f"{p[by]:,}",
            f"{1000 * p['seconds']:,.1f}",
            f"{scale * p['seconds'] / p[by]:.2f}",
            f"{p['memory'] / 1e9:.2f}",
            f"{p['memory_before'] / 1e9:.2f}",
        ]
        for p in points
    ]
    what = {"batch": "transitions"}.get(by, by)
    return table([what, "update, ms", unit, "peak memory, GB", "before, GB"], rows)


def environment_table(env: str, points: list[Point]) -> str:
    """Steps/s against the number of environments."""
    rows = [
        [
            f"{p['num_envs']}",
            f"{p['train']:,.0f}",
            f"{p['raw']:,.0f}",
            f"{p['train'] / p['raw']:.1%}",
        ]
        for p in points
    ]
    return table([f"{env}, environments", "training, steps/s", "alone, steps/s", "share"], rows)


def report(results: dict[str, Point]) -> str:
    """docs/scaling.md."""
    sections = [HEADER]
    if "batch" in results:
        size = results["batch"]["chunk_size"]
        chunks = f", chunks of {size:,}" if size else ", in one piece"
        sections.append(f"## Batch: a 64-64 policy{chunks}\n")
        sections.append(update_table(results["batch"]["points"], "batch"))
    if "parameters" in results:
        sections.append("## Parameters: two hidden layers, 2048 transitions\n")
        sections.append(update_table(results["parameters"]["points"], "parameters"))
    if "environments" in results:
        sections.append("## Environments: NPG, 2048 transitions an update\n")
        sections.append(ENVIRONMENT_NOTES)
        sections += [environment_table(*item) for item in results["environments"].items()]
    return "\n".join(sections)


def draw(results: dict[str, Point], path: Path) -> None:
    """Four panels: time and memory by batch, time by parameters, steps/s by environments."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4))
    if "batch" in results:
        draw_batch(axes[0][0], axes[0][1], results["batch"]["points"])
    if "parameters" in results:
        draw_parameters(axes[1][0], results["parameters"]["points"])
    if "environments" in results:
        draw_environments(axes[1][1], results["environments"])
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def column(points: list[Point], key: str) -> np.ndarray:
    """One value of each point."""
    return np.array([p[key] for p in points])


def draw_batch(time: plt.Axes, memory: plt.Axes, points: list[Point]) -> None:
    """Microseconds a transition, which is flat where the cost is linear; and memory added."""
    batch = column(points, "batch")
    time.plot(batch, 1e6 * column(points, "seconds") / batch, "o-")
    time.set(xscale="log", ylim=(0, None), xlabel="transitions", ylabel="update, µs a transition")
    added = (column(points, "memory") - column(points, "memory_before")) / 1e9
    memory.loglog(batch, added, "o-", label="update")
    proportional(memory, batch, added, "∝ transitions")
    memory.set(xlabel="transitions", ylabel="memory that it adds, GB")


def proportional(axis: plt.Axes, x: np.ndarray, y: np.ndarray, label: str) -> None:
    """A line of slope 1 through the last point, for comparison, and the legend."""
    axis.plot(x, y[-1] * x / x[-1], "--", color="0.5", label=label)
    axis.legend(frameon=False)


def draw_parameters(axis: plt.Axes, points: list[Point]) -> None:
    """Seconds of an update."""
    parameters, seconds = column(points, "parameters"), column(points, "seconds")
    axis.loglog(parameters, seconds, "o-", label="update")
    proportional(axis, parameters, seconds, "∝ parameters")
    axis.set(xlabel="parameters", ylabel="update of 2048 transitions, s")


def draw_environments(axis: plt.Axes, results: dict[str, list[Point]]) -> None:
    """Steps/s of training, and of the environments alone."""
    for color, (env, points) in enumerate(results.items()):
        number = column(points, "num_envs")
        axis.loglog(number, column(points, "train"), "o-", color=f"C{color}", label=env)
        axis.loglog(number, column(points, "raw"), "--", color=f"C{color}", label="alone")
    axis.set(xlabel="environments", ylabel="steps/s")
    axis.legend(frameon=False)


def main() -> None:
    """Measure the parts that are asked for, write everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--chunk-size", type=int, help="of `batch`: transitions at a time")
    parser.add_argument("--render", action="store_true", help="only remake .md and .png")
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # to follow it in a file
    path = DOCS / "scaling.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in [] if args.render else args.parts or PARTS:
        print(name)
        results[name] = PARTS[name](args)
        path.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, DOCS / "scaling.png")
    (DOCS / "scaling.md").write_text(report(results))
    print(report(results))
    print("wrote docs/scaling.json, docs/scaling.md and docs/scaling.png")


HEADER = """# Scaling

Made by `python benchmarks/scaling.py`; every point is a process of its own. An update is NPG's with
ten CG iterations (gradient, Fisher products, step) on a synthetic batch, 17 observations and 6
Gaussian actions. Memory is the largest resident set of the whole process; *before* is what Python,
PyTorch and the batch itself take.

![scaling](scaling.png)
"""

ENVIRONMENT_NOTES = """As shipped but for the number of environments, with the audits and without
evaluations; at least 16 steps from each environment, so that from 256 environments on updates are
larger. *Alone*: the same vector environment at random actions.
"""

if __name__ == "__main__":
    main()
