"""Wall time of scripts/train.py from the start of its process: to its first update, to a solution.

python benchmarks/startup.py 0 prints one line of json for seed 0; speed.py calls it.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from process import ROOT

POLL_SECONDS, LIMIT_SECONDS = 0.005, 60.0
SOLVED, EPISODES = 475.0, 100  # the trainer's mean return is over its last 100 episodes


def measure(seed: int) -> dict[str, Any]:
    """Seconds to the first row of metrics.csv and to the first that shows a solved CartPole.

    The trainer appends a row when an iteration ends, update and baseline's fit included, so the
    time at which a row appears is when it was done, to within the polling interval.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        start = time.perf_counter()
        command = ["scripts/train.py", "algo=npg", "env=CartPole-v1", f"seed={seed}"]
        process = subprocess.Popen(
            [sys.executable, *command, f"hydra.run.dir={folder}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        try:
            return {"seed": seed, **watch(process, folder / "metrics.csv", start)}
        finally:
            process.kill()
            process.wait()


def watch(process: subprocess.Popen, path: Path, start: float) -> dict[str, Any]:
    """Poll metrics.csv until CartPole is solved, the process ends or the time is up."""
    first, solved, size = None, None, 0
    while solved is None and process.poll() is None:
        elapsed = time.perf_counter() - start
        if elapsed > LIMIT_SECONDS:
            break
        if path.exists() and path.stat().st_size != size:
            size = path.stat().st_size
            rows = read_rows(path)
            first = first or (elapsed if rows else None)
            solved = elapsed if is_solved(rows) else None
        time.sleep(POLL_SECONDS)
    steps = int(float(rows[-1]["env_steps"])) if solved else None
    return {"first_update": first, "solved": solved, "env_steps": steps}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows that are written to their end."""
    lines = path.read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def is_solved(rows: list[dict[str, str]]) -> bool:
    """Whether the mean return of the last 100 episodes, all of them finished, is 475."""
    episodes = sum(float(row["rollout/episodes"]) for row in rows)
    # fewer than 100 episodes: also where the header is being rewritten and there are no rows
    return episodes >= EPISODES and float(rows[-1]["rollout/return_mean"]) >= SOLVED


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
