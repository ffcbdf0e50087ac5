"""One Fisher product of rlopt against double backprop of the KL and against its matmuls alone.

python benchmarks/fisher_product.py prints one line of json; speed.py calls it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import kl_divergence

from rlopt.fisher import fisher_operator
from rlopt.linalg import flatten
from rlopt.policies import MLPPolicy
from rlopt.types import Batch

Product = Callable[[Tensor], Any]

BATCH, HIDDEN = 16384, [64, 64]
ROUNDS, SECONDS = 60, 8.0
PROBLEMS = {
    "17 -> 64-64 -> 6, Gaussian": (17, spaces.Box(-1.0, 1.0, (6,))),
    "4 -> 64-64 -> 2, categorical": (4, spaces.Discrete(2)),
}


def make_problem(obs_size: int, action_space: spaces.Space) -> tuple[MLPPolicy, Batch]:
    """A policy and a synthetic batch."""
    torch.manual_seed(0)
    policy = MLPPolicy(
        spaces.Box(-np.inf, np.inf, (obs_size,)),
        action_space,
        hidden_sizes=HIDDEN,
        activation="tanh",
        distribution="gaussian",
        log_std_init=-0.5,
        output_gain=0.01,
        orthogonal_init=True,
        normalize_obs=True,
    )
    obs = torch.randn(BATCH, obs_size)
    policy.update_statistics(obs)
    with torch.no_grad():
        return policy, Batch(obs, policy(obs).sample(), torch.randn(BATCH))


def double_backprop(policy: MLPPolicy, batch: Batch) -> Product:
    """The usual product: the gradient of (grad KL . v), on a graph that is built once."""
    parameters = list(policy.parameters())
    with torch.no_grad():
        old = policy(batch.obs)
    kl = kl_divergence(old, policy(batch.obs)).mean()
    kl_gradient = flatten(torch.autograd.grad(kl, parameters, create_graph=True))
    return lambda v: flatten(torch.autograd.grad(kl_gradient.dot(v), parameters, retain_graph=True))


@torch.no_grad()
def matmuls_alone(policy: MLPPolicy, batch: Batch) -> Product:
    """The matrix products of one tangent and one adjoint pass, into outputs that are kept.

    With h the inputs of a layer of weights W and z its outputs: dz = dh W^T + h dW^T on the way up,
    W' = z'^T h and h' = z' W on the way down. No input of the first layer has a derivative.
    """
    weights = [p for p in policy.parameters() if p.dim() == 2]
    inputs = [torch.randn(len(batch), w.shape[1]) for w in weights]
    outputs = [torch.randn(len(batch), w.shape[0]) for w in weights]
    up, down = [torch.empty_like(z) for z in outputs], [torch.empty_like(h) for h in inputs]
    gradients, tangents = [torch.empty_like(w) for w in weights], [w.clone() for w in weights]

    @torch.no_grad()
    def product(v: Tensor) -> None:
        for i, (w, dw, h) in enumerate(zip(weights, tangents, inputs, strict=True)):
            torch.mm(h, dw.T, out=up[i])
            if i > 0:
                up[i].addmm_(h, w.T)
        for i, (w, h, z) in enumerate(zip(weights, inputs, outputs, strict=True)):
            torch.mm(z.T, h, out=gradients[i])
            if i > 0:
                torch.mm(z, w, out=down[i])

    return product


def measure(obs_size: int, action_space: spaces.Space, threads: int) -> dict[str, Any]:
    """Times of the three, in turn; ratios are taken turn by turn."""
    torch.set_num_threads(threads)
    policy, batch = make_problem(obs_size, action_space)
    products = {
        "ours": fisher_operator(policy, batch, "exact"),
        "double": double_backprop(policy, batch),
        "matmuls": matmuls_alone(policy, batch),
    }
    v = torch.randn(sum(p.numel() for p in policy.parameters()))
    exact, ours = products["double"](v), products["ours"](v)
    times = alternate(list(products.values()), v)
    return {
        "threads": threads,
        "milliseconds": dict(zip(products, np.median(1000 * times, axis=1).tolist(), strict=True)),
        "double / ours": quantiles(times[1] / times[0]),
        "ours / matmuls": quantiles(times[0] / times[2]),
        "relative difference": float((ours - exact).norm() / exact.norm()),
    }


def alternate(products: list[Product], v: Tensor) -> np.ndarray:
    """Seconds [product, turn] of ROUNDS turns, or as many as fit into SECONDS."""
    end = time.perf_counter() + SECONDS
    turns = []
    while len(turns) < ROUNDS and (not turns or time.perf_counter() < end):
        turns.append([seconds(product, v) for product in products])
    return np.array(turns).T


def seconds(product: Product, v: Tensor) -> float:
    """The time of one product."""
    start = time.perf_counter()
    product(v)
    return time.perf_counter() - start


def quantiles(ratios: np.ndarray) -> list[float]:
    """Median, lower and upper decile."""
    return np.quantile(ratios, [0.5, 0.1, 0.9]).tolist()


def main() -> None:
    """All problems on one thread and on two."""
    rows = [
        {"problem": name, **measure(*problem, threads)}
        for name, problem in PROBLEMS.items()
        for threads in (1, 2)
    ]
    print(json.dumps({"batch": BATCH, "rows": rows}))


if __name__ == "__main__":
    main()
