"""The objective's expansion, and the steps of NPG, TRPO and PPO against exact solutions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.optim import SGD

from rlopt import tabular
from rlopt.algos.npg import NPG
from rlopt.algos.ppo import PPO
from rlopt.algos.trpo import TRPO
from rlopt.enumeration import example
from rlopt.lecture.results import (
    UNDAMPED,
    Result,
    estimated_gradient,
    gap,
    largest,
    order,
    random_steps,
    step,
)
from rlopt.rows import Row, at_most


def first_order_expansion(seed: int) -> Result:
    """Slide "First Order Expansion on the Objective Function": grad J . x + O(|x|^2).

    The remainder is 1/2 x^T H x + O(|x|^3), where H is the objective's Hessian at theta_k; where
    the slide multiplies |x|^2 by |grad J| it must be by |H|. The error of a size is the largest of
    20 random directions.
    """
    ex = example(seed)
    g = tabular.policy_gradient(ex.mdp, ex.policy)
    H = jacrev(grad(ex.local_advantage))(ex.theta)
    sizes = torch.logspace(-1, -3, 7, dtype=g.dtype)
    steps = random_steps(sizes, len(g), seed)
    remainder = vmap(vmap(ex.local_advantage))(ex.theta + steps) - steps @ g
    quadratic = 0.5 * torch.einsum("nkp,pq,nkq->nk", steps, H, steps)
    theorem = tabular.policy_gradient_theorem(ex.mdp, ex.policy)
    return Result([
        at_most("L(theta_k)", ex.local_advantage(ex.theta).abs(), 1e-12),
        at_most("grad L = grad J", gap(grad(ex.local_advantage)(ex.theta), g), 1e-12),
        at_most("policy gradient theorem", gap(theorem, g), 1e-12),
        at_most("PG's gradient", gap(estimated_gradient(ex.policy, ex.batch), g), 1e-12),
        Row("order of the remainder", order(sizes, largest(remainder)), 1.9, 2.1),
        Row("its order less 1/2 x^T H x", order(sizes, largest(remainder - quadratic)), 2.9, 3.1),
    ])  # fmt: skip


def closed_form_update(seed: int) -> Result:
    """Slide "There is a closed form update": max g . x s.t. x^T F x <= delta, and eta's formula.

    NPG's step (max_kl = delta / 2) against scipy's SLSQP on the problem itself.
    """
    from scipy.optimize import minimize

    ex, delta = example(seed), 0.02
    g, F = tabular.policy_gradient(ex.mdp, ex.policy), tabular.fisher_matrix(ex.mdp, ex.policy)
    scale = delta**0.5  # x = scale * y keeps the solver's numbers near 1
    a, B = g.numpy(), F.numpy()
    solution = minimize(
        lambda y: -a @ y,
        0.1 * a,
        jac=lambda y: -a,
        constraints={
            "type": "ineq",
            "fun": lambda y: 1 - y @ B @ y,
            "jac": lambda y: -2 * B @ y,
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    independent = scale * torch.from_numpy(solution.x)
    npg = step(NPG, ex.policy, ex.batch, max_kl=delta / 2, step_size=None, **UNDAMPED)
    exact = tabular.natural_gradient_step(ex.mdp, ex.policy, delta) - ex.theta
    return Result([
        at_most("NPG's objective against SLSQP's", gap(g @ npg, g @ independent), 1e-6),
        at_most("F x, NPG against SLSQP", gap(F @ npg, F @ independent), 1e-4),
        at_most("x^T F x / delta - 1", abs(float(npg @ F @ npg) / delta - 1), 1e-10),
        at_most("NPG against pinv(F) g", gap(npg, exact), 1e-9),
    ])  # fmt: skip


def sample_based_npg(seed: int) -> Result:
    """Slide "An Implementation: Sample Based NPG": x = eta (F^ + lambda I)^-1 g.

    F^ is the average of the squared scores of the trajectories.
    """
    ex, eta, damping = example(seed), 0.1, 0.01
    g, F = tabular.policy_gradient(ex.mdp, ex.policy), tabular.fisher_matrix(ex.mdp, ex.policy)
    exact = eta * torch.linalg.solve(F + damping * torch.eye(len(g), dtype=F.dtype), g)
    settings = UNDAMPED | {"fisher": "empirical", "damping": damping}
    rows = []
    for solver in ("cg", "dense"):
        x = step(
            NPG, ex.policy, ex.batch, max_kl=1.0, step_size=eta, **settings | {"solver": solver}
        )
        rows.append(at_most(f"NPG against the dense solution, {solver}", gap(x, exact), 1e-9))
    return Result(rows)


def npg_is_trpo_to_leading_order(seed: int) -> Result:
    """Slide "TRPO is locally equivalent to the NPG": they differ by less than a step's order.

    Steps are O(delta^1/2), so the difference is O(delta); lengths are |x|_F = sqrt(x^T F x). NPG's
    delta is twice TRPO's: at the lecture's *same* delta TRPO's step is sqrt 2 longer, as the slide
    drops Taylor's 1/2.
    """
    ex = example(seed)
    g, F = tabular.policy_gradient(ex.mdp, ex.policy), tabular.fisher_matrix(ex.mdp, ex.policy)
    radii = torch.logspace(-1, -5, 9, dtype=torch.float64)
    trpo, npg = [], []
    for radius in radii.tolist():
        trpo.append(tabular.trust_region_step(ex.mdp, ex.policy, radius) - ex.theta)
        npg.append(step(NPG, ex.policy, ex.batch, max_kl=radius, step_size=None, **UNDAMPED))
    trpo_steps, npg_steps = torch.stack(trpo), torch.stack(npg)

    def length(x: Tensor) -> Tensor:
        return torch.einsum("np,pq,nq->n", x, F, x).sqrt()

    difference = length(trpo_steps - npg_steps)
    gains = torch.stack([ex.local_advantage(ex.theta + x) for x in trpo])
    same_delta = step(NPG, ex.policy, ex.batch, max_kl=1e-5 / 2, step_size=None, **UNDAMPED)
    ratio = length(trpo_steps[-1:]) / length(same_delta[None])
    small = radii < 1e-2  # where the leading order rules
    slope = order(radii[small], difference[small])
    rows = [
        Row("order of TRPO's step in delta", order(radii, length(trpo_steps)), 0.45, 0.55),
        Row("order of the difference", slope, 0.95, 1.05),
        at_most("gain over g . x_NPG - 1, delta 1e-5", abs(gains[-1] / (g @ npg[-1]) - 1), 0.01),
        Row("TRPO / NPG step, same delta", float(ratio), 1.40, 1.43),
    ]
    return Result(
        rows,
        {"radius": radii, "trpo": length(trpo_steps), "difference": difference, "order": slope},
    )


def estimated_trpo(seed: int) -> Result:
    """Slide "Estimating TRPO: optional slide": weighted objective, KL <= delta.

    rlopt's TRPO (line search on the natural gradient's ray) against the exact constrained maximum.
    """
    ex, delta = example(seed), 1e-2
    best = ex.local_advantage(tabular.trust_region_step(ex.mdp, ex.policy, delta))
    rows = []
    for kl in ("analytic", "sampled"):
        x = step(
            TRPO, ex.policy, ex.batch,
            max_kl=delta, kl=kl, backtrack_ratio=0.9, backtrack_tries=20, **UNDAMPED,
        )  # fmt: skip
        gain = ex.local_advantage(ex.theta + x)
        rows += [
            Row(f"KL / delta, {kl}", float(ex.kl(ex.theta + x)) / delta, 0.7, 1.0),
            Row(f"gain / exact TRPO's, {kl}", float(gain / best), 0.85, 1.0),
        ]
    return Result(rows)


def proximal_policy_optimization(seed: int) -> Result:
    """Slide "Proximal Policy Optimization (PPO)": SGD on E A - lambda E sum_h ln 1 / pi."""
    ex = example(seed)
    penalty = 2.0
    settings = {
        "minibatch_size": len(ex.batch), "penalty": penalty, "target_kl": None,
        "penalty_range": (1.0, 1.0), "max_grad_norm": None, "optimizer": partial(SGD, lr=0.05),
    }  # fmt: skip

    def ascend(kl: str, epochs: int) -> Tensor:
        return step(PPO, ex.policy, ex.batch, kl=kl, epochs=epochs, **settings)

    def l_k(theta: Tensor) -> Tensor:
        return ex.local_advantage(theta) - penalty * ex.kl(theta)

    first = ascend("analytic", 1) / 0.05
    analytic, sampled = ascend("analytic", 400), ascend("sampled", 400)
    start, end = grad(l_k)(ex.theta), grad(l_k)(ex.theta + analytic)
    g = tabular.policy_gradient(ex.mdp, ex.policy)
    return Result([
        at_most("first step = eta grad J", gap(first, g), 1e-12),
        at_most("400 steps, KL or ln 1 / pi", gap(sampled, analytic), 1e-9),
        at_most("|grad l^k| left after them", end.norm() / start.norm(), 1e-3),
    ])  # fmt: skip
