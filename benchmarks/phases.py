"""Where the time of an iteration goes, what of it no code could save, and what the audit costs.

    python benchmarks/phases.py profile '{"overrides": ["algo=npg"], "seconds": 5}'
    python benchmarks/phases.py audit '{"algo": "npg", "env_id": "CartPole-v1", "seconds": 5}'

prints one line of json. speed.py calls it.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from ours import compose_config, raw
from torch import Tensor, nn

from rlopt.build import make_trainer
from rlopt.trainer import Trainer

PARTS = {  # phase: the calls that it consists of
    "environment": ("rollout.recorder.env", "step"),
    "acting": ("rollout.recorder", "_act"),
    "sampling": ("rollout", "collect"),
    "advantages": ("", "_estimate"),
    "rule": ("rule", "step"),
    "update": ("", "_update"),
    "critic": ("baseline", "fit"),
}
INNER = {"sampling": ("environment", "acting"), "update": ("rule",)}
WARMUP, ALTERNATIONS = 3, 30


def profile(overrides: list[str], seconds: float) -> dict[str, Any]:
    """Milliseconds of an iteration and of its phases, each without those inside it."""
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_config([*overrides, "total_steps=1000000000"])
        trainer = make_trainer(cfg, Path(folder))
        for phase, (owner, name) in PARTS.items():
            time_calls(getattr_path(trainer, owner), name, phase, spent)
        repeat(trainer, WARMUP)
        spent.clear()
        steps, iterations, start = trainer.env_steps, 0, time.perf_counter()
        while time.perf_counter() - start < seconds or iterations < WARMUP:
            repeat(trainer, 1)
            iterations += 1
        spent["iteration"] = time.perf_counter() - start
        steps = (trainer.env_steps - steps) / iterations
        trainer.logger.close()
    for outer, inner in INNER.items():
        spent[outer] -= sum(spent[phase] for phase in inner)
    spent["rest"] = 2 * spent["iteration"] - sum(spent.values())
    ms = {phase: 1000 * total / iterations for phase, total in spent.items()}
    return {"milliseconds": ms, "steps": steps, "floor": floor(cfg, trainer, steps)}


def repeat(trainer: Trainer, iterations: int) -> None:
    """Iterations with their rows in the log."""
    for _ in range(iterations):
        metrics = trainer.iterate()
        trainer.logger.log(trainer.env_steps, metrics)


def getattr_path(x: Any, path: str) -> Any:
    """An attribute of an attribute; the object itself where the path is empty."""
    for name in filter(None, path.split(".")):
        x = getattr(x, name)
    return x


def time_calls(owner: Any, name: str, phase: str, spent: Counter[str]) -> None:
    """Add the seconds of each call to `spent[phase]`."""
    call = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = call(*args, **kwargs)
        spent[phase] += time.perf_counter() - start
        return result

    setattr(owner, name, timed)


def floor(cfg: DictConfig, trainer: Trainer, steps: float) -> dict[str, float]:
    """Milliseconds of the environment alone, and of the optimisers' steps with nothing around them.

    Of a policy's step by CG nothing is counted.
    """
    env = raw(cfg.env.id, cfg.env.num_envs, 1.0)["steps_per_second"]
    result = {"environment": 1000 * steps / env}
    batch = cfg.env.num_envs * cfg.rollout.num_steps
    for section, owner in (("algo", trainer.policy), ("baseline", trainer.baseline)):
        settings = cfg[section]
        if "minibatch_size" in settings and settings.get("fit") != "gauss_newton":
            number = settings.epochs * math.ceil(batch / settings.minibatch_size)
            size = min(settings.minibatch_size, batch)
            layers = [layer for layer in owner.network if isinstance(layer, nn.Linear)]
            sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
            result[section] = 1000 * number * bare_step(sizes, size)
    return result


def bare_step(sizes: list[int], rows: int) -> float:
    """Median seconds of a gradient step of a tanh network: its kernels, no autograd, no loss."""
    weights = [torch.randn(b, a) / a**0.5 for a, b in pairwise(sizes)]
    biases = [torch.zeros(b) for b in sizes[1:]]
    parameters = [*weights, *biases]
    optimizer = torch.optim.Adam(parameters, fused=True)
    x, g = torch.randn(rows, sizes[0]), torch.randn(rows, sizes[-1])

    @torch.no_grad()
    def step() -> None:
        gradients = backward(weights, forward(weights, biases, x), g)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.step()

    return timed_median(step)


def forward(weights: list[Tensor], biases: list[Tensor], x: Tensor) -> list[Tensor]:
    """The inputs of each layer; the output is of no use here."""
    inputs = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(torch.addmm(bias, inputs[-1], weight.T).tanh_())
    torch.addmm(biases[-1], inputs[-1], weights[-1].T)
    return inputs


def backward(weights: list[Tensor], inputs: list[Tensor], g: Tensor) -> list[Tensor]:
    """Gradients of weights and biases from that of the output, [rows, k]."""
    of_weights, of_biases = [], []
    for weight, x in zip(reversed(weights), reversed(inputs), strict=True):
        of_weights.append(g.T @ x)
        of_biases.append(g.sum(0))
        if x is not inputs[0]:
            g = torch.ops.aten.tanh_backward(g @ weight, x)
    return [*reversed(of_weights), *reversed(of_biases)]


def timed_median(call: Callable[[], None], repetitions: int = 300) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def audit(algo: str, env_id: str, seconds: float) -> dict[str, Any]:
    """An iteration with the audit over one without, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = []
        for on in ("true", "false"):
            cfg = compose_config([f"algo={algo}", f"env={env_id}", f"diagnostics={on}"])
            trainers.append(make_trainer(cfg, Path(folder) / on))
            repeat(trainers[-1], WARMUP)
        ratios: list[float] = []
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or len(ratios) < ALTERNATIONS:
            times = []
            for trainer in trainers:
                before = time.perf_counter()
                repeat(trainer, 1)
                times.append(time.perf_counter() - before)
            ratios.append(times[0] / times[1])
        for trainer in trainers:
            trainer.logger.close()
    return {"algo": algo, "env": env_id, "ratios": ratios}


def main() -> None:
    """Run one contender."""
    kinds: dict[str, Callable[..., dict[str, Any]]] = {"profile": profile, "audit": audit}
    print(json.dumps(kinds[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
