"""Time and peak memory of an NPG update on a synthetic batch; scaling.py calls it for each point.

python benchmarks/update_cost.py '{"batch": 1024, "hidden": 64, "chunk_size": null}' prints one line
of json. A process of its own: what the system reports is the peak since its start.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ours import compose_config

from rlopt.policies import MLPPolicy
from rlopt.targets import make
from rlopt.types import Batch

OBS_SIZE, ACTION_SIZE = 17, 6
SECONDS, MIN_UPDATES = 2.0, 2


def measure(batch: int, hidden: int, chunk_size: int | None) -> dict[str, Any]:
    """Seconds of an update, its peak memory and the process' memory before it, in bytes."""
    # a tolerance of 0: every point spends all its CG iterations
    cfg = compose_config(["algo=npg", "env=HalfCheetah-v4", "~tuned", "algo.cg_tolerance=0"])
    torch.set_num_threads(cfg.num_threads)
    torch.manual_seed(0)
    policy = make_policy(hidden)
    rule = make(cfg, "algo", policy)
    data = make_batch(policy, batch, chunk_size)
    before = peak_memory()
    times = []
    while len(times) < MIN_UPDATES or sum(times) < SECONDS:
        start = time.perf_counter()
        rule.step(data)
        times.append(time.perf_counter() - start)
    return {
        "batch": batch,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "seconds": float(np.median(times[1:])),
        "memory": peak_memory(),
        "memory_before": before,
    }


def make_policy(hidden: int) -> MLPPolicy:
    """A Gaussian policy with two hidden layers."""
    return MLPPolicy(
        spaces.Box(-np.inf, np.inf, (OBS_SIZE,)),
        spaces.Box(-1.0, 1.0, (ACTION_SIZE,)),
        hidden_sizes=[hidden, hidden],
        activation="tanh",
        distribution="gaussian",
        log_std_init=-0.5,
        output_gain=0.01,
        orthogonal_init=True,
        normalize_obs=True,
    )


def make_batch(policy: MLPPolicy, size: int, chunk_size: int | None) -> Batch:
    """Random transitions."""
    obs = torch.randn(size, OBS_SIZE)
    policy.update_statistics(obs[:10_000])
    action = torch.randn(size, ACTION_SIZE)
    chunks = {} if chunk_size is None else {"chunk_size": chunk_size}
    return Batch(obs, action, torch.randn(size), **chunks)


def peak_memory() -> int:
    """The largest resident set so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
