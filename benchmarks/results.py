"""The table of returns: train what is missing, two runs at a time; write docs/results.*.

    python benchmarks/results.py                                       what docs/results.json lacks
    python benchmarks/results.py --env Pendulum-v1 --algo trpo --repeat             one row, anew

Runs lie in outputs/results; one that was interrupted goes on. Each finished one is recorded in
docs/results.json with its curve and its commit, and the pages are made from that alone (--render).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

import results_page

from rlopt.report import runs

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "outputs" / "results"
RECORDS = ROOT / "docs" / "results.json"
SEEDS = range(5)
K = 1000
BUDGETS = {  # environment steps
    "CartPole-v1": 100 * K,
    "Acrobot-v1": 100 * K,
    "Pendulum-v1": 100 * K,
    "LunarLanderContinuous-v3": 200 * K,
    "LunarLander-v3": 300 * K,
    "MountainCar-v0": 300 * K,
    "BipedalWalker-v3": 1000 * K,
    "HalfCheetah-v4": 1000 * K,
    "Hopper-v4": 1000 * K,
    "Ant-v4": 1000 * K,
    "Humanoid-v4": 1000 * K,
}
OVERSHOOT = 3 * K  # of the last iteration at the most, so that no run has more than its budget
SETTINGS = {  # what is added to algo=... env=... seed=...
    "tuned": [],
    "defaults": ["~tuned"],
    "first crossing": ["eval.every=1000"],
}
POINTS = 100  # of a curve that is recorded


@dataclass(frozen=True)
class Job:
    """One run of the table."""

    settings: str
    env: str
    algo: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in docs/results.json, and its folder's below outputs/results."""
        return f"{self.settings.replace(' ', '_')}/{self.env}/{self.algo}/seed{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """Its command: those of `python scripts/train.py`."""
        steps = BUDGETS[self.env] - OVERSHOOT
        often = self.settings == "first crossing"
        every = [] if often else [f"eval.every={max(BUDGETS[self.env] // 10, 20 * K)}"]
        common = [f"algo={self.algo}", f"env={self.env}", f"seed={self.seed}"]
        return [*common, f"total_steps={steps}", *every, *SETTINGS[self.settings]]

    def run(self, repeat: bool) -> None:
        """Train, or go on with what an interrupted run left."""
        folder = RUNS / self.key
        if repeat:
            shutil.rmtree(folder, ignore_errors=True)
        if not finished(folder):
            fresh = [*self.overrides, f"hydra.run.dir={folder}"]
            begun = (folder / "checkpoints" / "last.pt").is_file()
            if not begun:
                shutil.rmtree(folder, ignore_errors=True)
            arguments = [f"resume={folder}"] if begun else fresh
            subprocess.run([sys.executable, "scripts/train.py", *arguments], cwd=ROOT, check=True)

    def record(self) -> dict[str, Any]:
        """What docs/results.json keeps of the run in its folder."""
        folder = RUNS / self.key
        run, summary = runs.read(folder), json.loads((folder / "summary.json").read_text())
        steps, returns = run.curve("train_return", "steps")
        grid, curve = results_page.thinned(steps, returns, POINTS)
        eval_steps, evals = run.curve("eval_return", "steps")
        return {
            "command": f"python scripts/train.py {' '.join(self.overrides)}",
            "commit": summary["git_commit"],
            "wall_seconds": round(summary["wall_seconds"]),
            "budget": BUDGETS[self.env],
            "env_steps": summary["env_steps"],
            "eval_return": round(summary["eval_return_mean"], 2),
            "eval_episodes": summary["eval_episodes"],
            "steps": [round(x) for x in grid],
            "train_returns": [round(x, 2) for x in curve],
            "eval_steps": [round(x) for x in eval_steps],
            "eval_returns": [round(x, 2) for x in evals],
        }


def finished(folder: Path) -> bool:
    """Whether the run in the folder came to its end."""
    path = folder / "summary.json"
    return path.is_file() and json.loads(path.read_text())["status"] == "finished"


def read_records() -> dict[str, Any]:
    """docs/results.json."""
    return json.loads(RECORDS.read_text()) if RECORDS.is_file() else {}


def wanted(args: argparse.Namespace) -> Iterator[Job]:
    """The jobs that the command line names, those of few steps first."""
    for env in sorted(args.env, key=lambda env: BUDGETS[env]):
        for settings, algo in product(args.settings, args.algo):
            has_file = results_page.has_tuned_file(env, algo)
            sensible = {"tuned": has_file, "defaults": True, "first crossing": env == "CartPole-v1"}
            if sensible[settings]:
                yield from (Job(settings, env, algo, seed) for seed in args.seeds)


def main() -> None:
    """Run what is missing, record it, write the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--env", choices=BUDGETS, nargs="*", default=list(BUDGETS))
    parser.add_argument("--algo", choices=results_page.RULES, nargs="*", default=results_page.RULES)
    parser.add_argument("--settings", choices=SETTINGS, nargs="*", default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--repeat", action="store_true", help="train what is recorded too")
    parser.add_argument("--render", action="store_true", help="only remake the pages")
    args = parser.parse_args()
    lock = Lock()

    def work(job: Job) -> None:
        job.run(args.repeat)
        with lock:
            RECORDS.write_text(dumped({**read_records(), job.key: job.record()}))

    recorded = read_records()
    jobs = [job for job in wanted(args) if args.repeat or job.key not in recorded]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(work, [] if args.render else jobs))
    results_page.write(read_records(), ROOT / "docs", ROOT / "README.md")


def dumped(records: dict[str, Any]) -> str:
    """Json with a line for each run, so that a change is easy to see."""
    lines = (f"{json.dumps(key)}: {json.dumps(records[key])}" for key in sorted(records))
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
