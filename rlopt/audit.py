"""What an update did, against what its quadratic model predicted, alike for every rule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rlopt.fisher import exact_metric
from rlopt.linalg import assign, flatten, gradient
from rlopt.types import Batch, Policy

CURVATURE_SAMPLES = 256
WIDTH = 1e-2  # of the central difference along the step


def audit(policy: Policy, batch: Batch, old_parameters: Tensor) -> dict[str, float]:
    """Compare the step from `old_parameters` [P] to the policy's with g and F at the old ones.

    Returns:
        `audit/predicted_gain`: g . step, the first-order change of the surrogate.
        `audit/predicted_kl`: 1/2 step^T F step, the second-order KL, on every n-th transition
        so that about 250 are taken.
        `audit/step_gradient_cosine`: angle between the step and the gradient.
        `audit/gradient_split_cosine`: angle between the gradients of the batch's two halves, which
        are different environments; near 0 the gradient is noise.
        `audit/gradient_snr`: squared gradient over its squared standard error, by the same halves.

    Source: lecture, "NPG derivation" (both expansions).
    """
    parameters = list(policy.parameters())
    new_parameters = flatten(parameters).detach()
    step = new_parameters - old_parameters
    every = max(1, batch.count // CURVATURE_SAMPLES)
    predicted_kl = _quadratic_kl(policy, batch[::every], parameters, old_parameters, step)
    assign(parameters, old_parameters)
    middle = len(batch) // 2
    first = _gradient(policy, batch[:middle], parameters)
    second = _gradient(policy, batch[middle:], parameters)
    g = (first + second) / 2
    assign(parameters, new_parameters)

    squared_error = (first - second).square().sum() / 4
    return {
        "audit/predicted_gain": float(g.dot(step)),
        "audit/predicted_kl": predicted_kl,
        "audit/step_gradient_cosine": float(cosine_similarity(step, g, dim=0)),
        "audit/gradient_split_cosine": float(cosine_similarity(first, second, dim=0)),
        "audit/gradient_snr": float(first.dot(second) / squared_error),
    }


def _quadratic_kl(
    policy: Policy, batch: Batch, parameters: list[Tensor], theta: Tensor, step: Tensor
) -> float:
    """1/2 E[(J step)^T M (J step)] at theta; J step takes two forward passes and no graph."""
    with torch.no_grad():
        ends = []
        for width in (WIDTH, -WIDTH):
            assign(parameters, theta + width * step)
            ends.append(policy.dist_params(batch.obs))
        J_step = (ends[0] - ends[1]) / (2 * WIDTH)
        params = (ends[0] + ends[1]) / 2  # those at theta, but for O(WIDTH^2)
    M_J_step = exact_metric(policy, params, batch)(J_step)
    return 0.5 * float(batch.expect((J_step * M_J_step).sum(-1)))


def _gradient(policy: Policy, batch: Batch, parameters: list[Tensor]) -> Tensor:
    """E[grad ln pi(a | s) A] on a part of the batch; zero where the part is empty."""
    if batch.count == 0:
        return torch.zeros_like(flatten(parameters))
    log_prob = policy(batch.obs).log_prob(batch.action)
    return gradient(batch.expect(log_prob * batch.advantage), parameters)
