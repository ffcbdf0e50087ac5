"""One run in one process or in two on a batch of 64k HalfCheetah transitions.

python benchmarks/ranks.py 2 prints a line of json: steps/s, and what two processes at once compute
of what one does alone, without which two can't be faster. speed.py calls it.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from process import ROOT

BATCH, UPDATES = 64 * 1024, 4
OVERRIDES = [
    "algo=npg",
    "env=HalfCheetah-v4",
    "env.num_envs=64",
    f"rollout.num_steps={BATCH // 64}",
    f"total_steps={UPDATES * BATCH - BATCH // 2}",
    "eval.every=1000000000",
    "eval.final_episodes=2",
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def measure(processes: int) -> dict[str, Any]:
    """Median steps/s of the iterations after the first."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        launch = [] if processes == 1 else [*TORCHRUN, str(processes)]
        command = [sys.executable, *launch, "scripts/train.py", *OVERRIDES]
        subprocess.run(
            [*command, f"hydra.run.dir={folder}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return {"steps_per_second": median(float(r["time/steps_per_second"]) for r in rows[1:])}


def loop(seconds: float) -> int:
    """How far a process counts in a time."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        count += 1
    return count


def parallel_speedup(seconds: float = 2.0) -> float:
    """What two processes at once compute, over what one does alone: 2 on two idle cores."""
    with multiprocessing.Pool(2) as pool:
        pool.map(loop, [0.1, 0.1])
        (alone,) = pool.map(loop, [seconds])
        return sum(pool.map(loop, [seconds, seconds], chunksize=1)) / alone


if __name__ == "__main__":
    print(json.dumps({**measure(int(sys.argv[1])), "parallel_speedup": parallel_speedup()}))
