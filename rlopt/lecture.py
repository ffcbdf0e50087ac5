"""The lecture's statements, each measured on the package's own code against an independent oracle.

A statement is a function without arguments: it returns the rows of the table and what its figure
shows. Its docstring begins with its slide's title. `scripts/lecture.py` runs them all.

The oracles are enumeration of all trajectories, automatic differentiation through exact values, and
scipy's solvers. What is judged are the update rules, Fisher operators, advantage estimators and
rollouts; `exact_rollout` turns the expectations that these estimate into plain averages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import grad, jacrev
from torch.optim import SGD

from rlopt import tabular
from rlopt.advantages import reward_to_go
from rlopt.algos.npg import NPG
from rlopt.algos.pg import PG
from rlopt.algos.ppo import PPO
from rlopt.algos.trpo import TRPO
from rlopt.baselines import LinearBaseline, ZeroBaseline
from rlopt.distributions import Categorical, DiagonalGaussian
from rlopt.enumeration import enumerate_trajectories, example, trajectory_batch
from rlopt.envs import make_vector_env
from rlopt.fisher import fisher_operator
from rlopt.linalg import dense
from rlopt.policies import MLPPolicy
from rlopt.rollout import EpisodeRollout
from rlopt.rows import Row, at_most
from rlopt.tabular import TabularMDP, action_probabilities, parameters_of, tabular_policy
from rlopt.types import Batch, Rollout

UNDAMPED: dict[str, Any] = {
    "fisher": "exact",
    "solver": "cg",
    "damping": 0.0,
    "cg_iterations": 50,
    "cg_tolerance": 1e-14,
}


@dataclass(frozen=True)
class Result:
    """The rows of a statement, and what its figure shows."""

    rows: list[Row]
    data: dict[str, Any] = field(default_factory=dict)


def gap(x: Tensor, truth: Tensor) -> float:
    """The largest difference, relative to the largest entry of the truth."""
    return float((x - truth).abs().max() / truth.abs().max())


def order(size: Tensor, error: Tensor) -> float:
    """The slope of ln error over ln size."""
    return float(np.polyfit(size.log().numpy(), error.log().numpy(), 1)[0])


def random_pi(num_states: int, num_actions: int, seed: int) -> Tensor:
    """A random policy table [S, A]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.dirichlet(np.ones(num_actions), num_states))


def step(
    rule: Callable[..., Any], policy: MLPPolicy | LogisticPolicy, batch: Batch, **settings: Any
) -> Tensor:
    """By how much one step of an update rule moves a copy of the policy: [P]."""
    moved = copy.deepcopy(policy)
    rule(moved, **settings).step(batch)
    return parameters_of(moved) - parameters_of(policy)


def estimated_gradient(policy: MLPPolicy | LogisticPolicy, batch: Batch) -> Tensor:
    """The gradient [P] that rlopt.algos.pg follows: its step at learning rate 1."""
    return step(PG, policy, batch, optimizer=partial(SGD, lr=1.0))


# Statements


def performance_difference_lemma() -> Result:
    """Slide "The Performance Difference Lemma (PDL)": V~ - V = E_{tau ~ rho~} sum_h A_h.

    From every start state, on random MDPs, on FrozenLake, and summed over all trajectories.
    """
    mdps = [tabular.random_mdp(6, 3, 8, seed) for seed in range(20)]
    mdps.append(tabular.from_gymnasium("FrozenLake-v1", horizon=30))
    errors = []
    for seed, mdp in enumerate(mdps):
        _, S, A = mdp.shape
        old, new = random_pi(S, A, seed), random_pi(S, A, 100 + seed)
        difference = tabular.values(mdp, new).V[0] - tabular.values(mdp, old).V[0]
        errors.append((difference - tabular.performance_difference(mdp, old, new)).abs().max())
    ex = example()
    new, taus = random_pi(4, 3, 0), enumerate_trajectories(ex.mdp)
    steps = torch.arange(ex.mdp.horizon).expand_as(taus.state)
    A_tau = tabular.values(ex.mdp, ex.pi).A[steps, taus.state, taus.action] * taus.active
    difference = tabular.expected_return(ex.mdp, new) - tabular.expected_return(ex.mdp, ex.pi)
    enumerated = taus.log_prob(new).exp() @ A_tau.sum(-1)
    return Result([
        at_most("21 MDPs, every start state", max(errors), 1e-10),
        at_most("sum over all trajectories", (enumerated - difference).abs(), 1e-10),
    ])  # fmt: skip


def degradation_bound() -> Result:
    """Slide "Back to Approximate Policy Iteration (API)": V^{k+1}(s_0) >= V^k(s_0) - H |Delta_inf|.

    The step is greedy in advantages with errors. The bound is reached where the wrong action leads
    into a state from which it is chosen again: "we get trapped at this state".
    """
    changes, bounds = [], []
    for seed in range(300):
        mdp = tabular.random_mdp(5, 3, 6, seed)
        old = random_pi(5, 3, seed)
        V, _, A = tabular.values(mdp, old)
        noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(A.shape))
        new = tabular.greedy(A + 2 * (seed % 4) * noise)
        changes.append(tabular.values(mdp, new).V[0] - V[0])
        bounds.append(tabular.degradation_bound(mdp, old, new) - V[0])
    change, bound = torch.stack(changes), torch.stack(bounds)

    mdp, old, new = trap()
    V_old, V_new = tabular.values(mdp, old).V[0], tabular.values(mdp, new).V[0]
    reached = tabular.degradation_bound(mdp, old, new)
    rows = [
        Row("300 random MDPs, smallest slack", float((change - bound).min()), 0.0, np.inf),
        Row("share of their states that degrade", float((change < 0).double().mean()), 0.05, 1.0),
        at_most("slack on the constructed MDP", (V_new - reached).abs().max(), 1e-12),
    ]
    trapped = (reached - V_old, V_new - V_old)
    return Result(rows, {"bound": bound, "change": change, "trap": trapped})


def trap() -> tuple[TabularMDP, Tensor, Tensor]:
    """States safe and trap, actions leave and enter (reward -1): the old pi leaves, the new enters.

    A_h(s, enter) = -1 everywhere, so that the new policy loses exactly H.
    """
    P = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)  # action 0 to safe, 1 to trap
    R = torch.tensor([[0.0, -1.0], [0.0, -1.0]], dtype=torch.float64)
    mu, leave, enter = R.new_tensor([1, 0]), R.new_tensor([[1, 0]] * 2), R.new_tensor([[0, 1]] * 2)
    return TabularMDP(P, R, mu, 6, torch.tensor([False, False])), leave, enter


def kl_is_a_divergence() -> Result:
    """Slide "KL-divergence: measures the distance between two distributions": >= 0, 0 iff equal.

    By Pinsker's inequality KL >= 2 TV^2, so that KL = 0 leaves no distance. The Gaussian's is
    |mu_1 - mu_2|^2 / 2 sigma^2.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1000, 5, generator=generator, dtype=torch.float64)
    p, q = Categorical(logits[0]), Categorical(logits[1])
    tv = (p.probs - q.probs).abs().sum(-1) / 2
    mu_1, mu_2 = torch.randn(2, 1000, 3, generator=generator, dtype=torch.float64)
    log_std = torch.randn(1000, 1, generator=generator, dtype=torch.float64).expand(-1, 3)
    gaussian = kl_divergence(
        DiagonalGaussian(torch.cat([mu_1, log_std], -1)),
        DiagonalGaussian(torch.cat([mu_2, log_std], -1)),
    )
    closed_form = (mu_1 - mu_2).square().sum(-1) / (2 * log_std[:, 0].exp() ** 2)
    slack = (kl_divergence(p, q) - 2 * tv**2).min()
    return Result([
        Row("smallest KL - 2 TV^2 of 1000 pairs", float(slack), 0.0, np.inf),
        at_most("KL(P | P)", kl_divergence(p, p).abs().max(), 1e-15),
        at_most("Gaussian against closed form", gap(gaussian, closed_form), 1e-12),
    ])  # fmt: skip


def trajectory_kl_sums_over_steps() -> Result:
    """Slide "The regularization term is": KL(rho | rho~) = E_tau sum_h ln pi / pi~.

    Against sum_tau rho ln rho / rho~ over all trajectories.
    """
    ex = example()
    new, taus = random_pi(4, 3, 1), enumerate_trajectories(ex.mdp)
    old_log, new_log = taus.log_prob(ex.pi), taus.log_prob(new)
    definition = (old_log.exp() * (old_log - new_log)).sum()
    with torch.no_grad():  # the package's, on a batch: expect(KL(pi | pi~)) and the sampled one
        old_dist, new_dist = ex.policy(ex.batch.obs), Categorical((ex.batch.obs @ new).log())
        analytic = ex.batch.expect(kl_divergence(old_dist, new_dist))
        log_ratio = old_dist.log_prob(ex.batch.action) - new_dist.log_prob(ex.batch.action)
        sampled = ex.batch.expect(log_ratio)
    exact = tabular.trajectory_kl(ex.mdp, ex.pi, new)
    return Result([
        at_most("exact, against all trajectories", gap(exact, definition), 1e-12),
        at_most("mean of analytic KL on a batch", gap(analytic, definition), 1e-12),
        at_most("mean of ln pi / pi~ on a batch", gap(sampled, definition), 1e-12),
    ])  # fmt: skip


def kl_gradient_is_zero() -> Result:
    """Slide "The gradient of the KL-divergence is zero at theta^k": E_tau grad ln rho(tau) = 0."""
    ex = example()
    taus = enumerate_trajectories(ex.mdp)
    scores = jacrev(lambda theta: taus.log_prob(ex.at(theta)))(ex.theta)
    return Result([
        at_most("grad KL at theta_k", grad(ex.kl)(ex.theta).abs().max(), 1e-12),
        at_most("E_tau grad ln rho", (taus.log_prob(ex.pi).exp() @ scores).abs().max(), 1e-12),
        Row("|grad ln rho(tau)|, largest", float(scores.abs().max()), 0.1, np.inf),
    ])  # fmt: skip


def kl_hessian_is_fisher() -> Result:
    """Slide "Let's compute the Hessian of the KL-divergence at theta^k": = F = -E_tau hess ln rho.

    The slide's second line lacks the minus sign that its third has.
    """
    ex = example()
    taus = enumerate_trajectories(ex.mdp)
    rho = taus.log_prob(ex.pi).exp()
    F = tabular.fisher_matrix(ex.mdp, ex.policy)

    def mean_log_likelihood(theta: Tensor) -> Tensor:  # averaged with rho of theta_k
        return rho @ taus.log_prob(ex.at(theta))

    operators = {
        kind: dense(fisher_operator(ex.policy, ex.batch, kind), ex.theta)
        for kind in ("exact", "empirical")
    }
    return Result([
        at_most("Hessian of the trajectory KL", gap(jacrev(grad(ex.kl))(ex.theta), F), 1e-12),
        at_most("-E_tau hess ln rho", gap(-jacrev(grad(mean_log_likelihood))(ex.theta), F), 1e-12),
        at_most("fisher_operator, exact", gap(operators["exact"], F), 1e-12),
        at_most("fisher_operator, empirical", gap(operators["empirical"], F), 1e-12),
    ])  # fmt: skip


def fisher_is_a_sum_over_steps() -> Result:
    """Slide "NPG: A “leading order” equivalent program to TRPO": F sums over the steps.

    The score of the whole trajectory, squared and averaged over all trajectories, equals the sum of
    the steps' squares: the cross terms vanish in expectation, and only there.
    """
    ex = example()
    taus = enumerate_trajectories(ex.mdp)
    rho = taus.log_prob(ex.pi).exp()
    scores = jacrev(lambda theta: taus.log_prob(ex.at(theta)))(ex.theta)
    whole = torch.einsum("n,np,nq->pq", rho, scores, scores)
    steps = dense(fisher_operator(ex.policy, ex.batch, "empirical"), ex.theta)
    return Result([
        at_most("exact F against whole trajectories",
                gap(tabular.fisher_matrix(ex.mdp, ex.policy), whole), 1e-12),
        at_most("fisher_operator against them", gap(steps, whole), 1e-12),
    ])  # fmt: skip


def first_order_expansion() -> Result:
    """Slide "First Order Expansion on the Objective Function": grad J . x + O(|x|^2)."""
    ex = example()
    g = tabular.policy_gradient(ex.mdp, ex.policy)
    direction = torch.randn(len(g), generator=torch.Generator().manual_seed(1), dtype=g.dtype)
    sizes = torch.logspace(-1, -4, 7, dtype=g.dtype)
    steps = sizes[:, None] * direction / direction.norm()
    error = torch.stack([ex.local_advantage(ex.theta + x) - g @ x for x in steps]).abs()
    theorem = tabular.policy_gradient_theorem(ex.mdp, ex.policy)
    return Result([
        at_most("L(theta_k)", ex.local_advantage(ex.theta).abs(), 1e-12),
        at_most("grad L = grad J", gap(grad(ex.local_advantage)(ex.theta), g), 1e-12),
        at_most("policy gradient theorem", gap(theorem, g), 1e-12),
        at_most("PG's gradient", gap(estimated_gradient(ex.policy, ex.batch), g), 1e-12),
        Row("order of the error", order(sizes, error), 1.9, 2.1),
    ])  # fmt: skip


def taylor_expansion_of_the_constraint() -> Result:
    """Slide "Taylor Expansion on the Constraint": KL = 1/2 dtheta^T F dtheta + O(|dtheta|^3)."""
    ex = example()
    F = dense(fisher_operator(ex.policy, ex.batch, "exact"), ex.theta)
    direction = torch.randn(len(F), generator=torch.Generator().manual_seed(2), dtype=F.dtype)
    sizes = torch.logspace(-1, -3, 7, dtype=F.dtype)
    steps = sizes[:, None] * direction / direction.norm()
    kl = torch.stack([ex.kl(ex.theta + x) for x in steps])
    quadratic = 0.5 * torch.einsum("np,pq,nq->n", steps, F, steps)
    return Result([
        Row("order of KL", order(sizes, kl), 1.9, 2.1),
        Row("order of the error", order(sizes, (kl - quadratic).abs()), 2.9, 3.1),
    ])  # fmt: skip


def closed_form_update() -> Result:
    """Slide "There is a closed form update": max g . x s.t. x^T F x <= delta, and eta's formula.

    NPG's step (max_kl = delta / 2) against scipy's SLSQP on the problem itself.
    """
    from scipy.optimize import minimize

    ex, delta = example(), 0.02
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


def npg_is_trpo_to_leading_order() -> Result:
    """Slide "TRPO is locally equivalent to the NPG": they differ by less than a step's order.

    Steps are O(delta^1/2), so the difference is O(delta); lengths are |x|_F = sqrt(x^T F x). NPG's
    delta is twice TRPO's: at the lecture's *same* delta TRPO's step is sqrt 2 longer, as the slide
    drops Taylor's 1/2.
    """
    ex = example()
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


def estimated_trpo() -> Result:
    """Slide "Estimating TRPO: optional slide": weighted objective, KL <= delta.

    rlopt's TRPO (line search on the natural gradient's ray) against the exact constrained maximum.
    """
    ex, delta = example(), 1e-2
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


def importance_sampling() -> Result:
    """Slide "Back to Estimating l^k(theta)": E_{a ~ pi_theta} A = E_{a ~ pi_k} [pi_theta / pi_k A].

    With R_h(tau) - b in place of A the estimate is off by a constant, the same for every theta.
    """
    ex = example()
    others = [ex.theta + 0.3 * i * torch.ones_like(ex.theta).cumsum(0).cos() for i in (1, 2)]
    zero = torch.zeros_like(ex.rollout.obs[..., 0])
    returns = trajectory_batch(ex.rollout, monte_carlo(ex.rollout, zero - 1.7))

    def estimate(batch: Batch, theta: Tensor) -> Tensor:
        ratio = (ex.at(theta) / ex.pi)[batch.obs.argmax(-1), batch.action]
        return batch.expect(ratio * batch.advantage)

    exact = torch.stack([ex.local_advantage(theta) for theta in others])
    weighted = torch.stack([estimate(ex.batch, theta) for theta in others])
    constant = torch.stack([estimate(returns, theta) for theta in others]) - exact
    at_theta_k = estimate(returns, ex.theta)
    return Result([
        at_most("A, against the exact l^k", gap(weighted, exact), 1e-12),
        at_most("R_h - b, spread of the constant", (constant - at_theta_k).abs().max(), 1e-12),
    ])  # fmt: skip


def proximal_policy_optimization() -> Result:
    """Slide "Proximal Policy Optimization (PPO)": SGD on E A - lambda E sum_h ln 1 / pi."""
    ex = example()
    penalty = 2.0
    settings = {
        "minibatch_size": len(ex.batch), "penalty": penalty, "target_kl": None,
        "penalty_range": (1.0, 1.0), "optimizer": partial(SGD, lr=0.05),
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


def monte_carlo(rollout: Rollout, value: Tensor) -> Tensor:
    """R_h(tau) - b [T, N] by the package's estimator, with values b [T+1, N].

    The lecture's J ends at H and is worth 0 there: a time limit is not bootstrapped.
    """
    ends = rollout.terminated, rollout.truncated
    return reward_to_go(rollout.reward, value, *ends, rollout.valid, gamma=1.0, bootstrap=False)


def unbiased_for_any_baseline() -> Result:
    """Slide "(M=1) PG with a Learned Baseline": "regardless of our choice of b, ... unbiased".

    In exact expectation over all trajectories, for baselines that are zero, arbitrary or V.
    """
    ex = example()
    g = tabular.policy_gradient(ex.mdp, ex.policy)
    state = ex.rollout.obs.argmax(-1)
    arbitrary = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=g.dtype)
    rows = []
    for name, b in {
        "zero": torch.zeros(4, 4, dtype=g.dtype),
        "arbitrary": 10 * arbitrary,
        "V_h": tabular.values(ex.mdp, ex.pi).V,
    }.items():
        batch = trajectory_batch(ex.rollout, monte_carlo(ex.rollout, b[ex.rollout.step, state]))
        rows.append(
            at_most(f"exact mean, b {name}", gap(estimated_gradient(ex.policy, batch), g), 1e-12)
        )
    return Result(rows)


def variance_without_and_with_baseline() -> Result:
    """Slide "(M=1) PG with a Learned Baseline": b fitted on N other trajectories cuts the variance.

    Sampled from a slippery CliffWalking by the package's rollout, against the exact gradient: the
    largest |z| of its entries (of states that an average trajectory visits at least 0.05 times)
    and Student's quantile for it, at a level of 0.001 over all entries.
    """
    from scipy.stats import t as student

    estimates, exact, tested = sampled_gradients()
    limit = float(student.ppf(1 - 5e-4 / int(tested.sum()), df=BATCHES - 1))
    rows, variance = [], {}
    for name, x in estimates.items():
        z = (x.mean(0) - exact) / (x.var(0) / len(x)).sqrt()
        rows.append(at_most(f"largest |z|, b {name}", z[tested].abs().max(), limit))
        variance[name] = float(x.var(0).sum()) * EPISODES
    error = (estimates["fitted b(s, h)"].mean(0) - exact).norm() / exact.norm()
    ratio = variance["zero"] / variance["fitted b(s, h)"]
    rows += [
        at_most("relative error of the mean, b fitted", error, 0.1),
        Row("variance, b zero / b fitted", ratio, 1.5, np.inf),
    ]
    return Result(rows, {"variance": variance})


BATCHES, EPISODES, HORIZON = 40, 80, 8


def sampled_gradients() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """PG's gradients on a slippery CliffWalking, the exact one, and the entries to test.

    Returns:
        [BATCHES, P] for each baseline, from the same trajectories; [P]; and [P] bool. Entries of
        states that are hardly ever visited are not tested: their samples are far from normal.
    """
    env_id = "CliffWalkingSlippery-v1"
    mdp = tabular.from_gymnasium(env_id, HORIZON)
    _, S, A = mdp.shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = tabular_policy(random_pi(S, A, 3).float().double()).float()
        exact_V = tabular.values(mdp, action_probabilities(policy, S)).V.float()
        env = make_vector_env(
            env_id, num_envs=50, backend="sync", max_episode_steps=HORIZON, kwargs={}
        )
        fitted = LinearBaseline(env.single_observation_space, ridge=1e-5, sees_step=True)
        baselines: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "zero": ZeroBaseline(env.single_observation_space),
            "arbitrary": lambda obs, step: 100 * (obs.argmax(-1) + 3.0 * step).sin(),
            "fitted b(s, h)": fitted,
            "exact V_h(s)": lambda obs, step: exact_V[step, obs.argmax(-1)],
        }
        sampler = EpisodeRollout(
            env, "cpu", seed=0,
            episodes=EPISODES, baseline_episodes=EPISODES, max_episode_steps=HORIZON,
        )  # fmt: skip
        estimates: dict[str, list[Tensor]] = {name: [] for name in baselines}
        for _ in range(BATCHES):
            fit(fitted, sampler.collect_for_baseline(policy))
            rollout = sampler.collect(policy)
            for name, b in baselines.items():
                batch = trajectory_batch(
                    rollout, monte_carlo(rollout, b(rollout.obs, rollout.step))
                )
                estimates[name].append(estimated_gradient(policy, batch).double())
        env.close()
    exact = tabular.policy_gradient(mdp, policy.double())
    often = tabular.visits(mdp, action_probabilities(policy, S)).sum(0) >= 0.05
    tested = torch.cat([often.repeat(A), torch.ones(A, dtype=torch.bool)])  # weight [A, S], bias
    return {name: torch.stack(x) for name, x in estimates.items()}, exact, tested


def fit(baseline: LinearBaseline, rollout: Rollout | None) -> None:
    """Regress the Monte Carlo returns on state and step."""
    assert rollout is not None
    valid = rollout.valid
    target = monte_carlo(rollout, torch.zeros_like(rollout.step, dtype=rollout.reward.dtype))
    baseline.fit(rollout.obs[:-1][valid], rollout.step[:-1][valid], target[valid])


class LogisticPolicy(nn.Module):
    """The lecture's one parameter: pi_1 = e^theta / (1 + e^theta), pi_2 = 1 / (1 + e^theta)."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta], dtype=torch.float64))

    def dist_params(self, obs: Tensor) -> Tensor:
        """Logits (theta, 0) [B, 2]."""
        theta = self.theta.expand(len(obs))
        return torch.stack([theta, torch.zeros_like(theta)], -1)

    def dist(self, params: Tensor) -> Categorical:
        """Logits [B, 2] to the distribution."""
        return Categorical(params)

    def forward(self, obs: Tensor) -> Categorical:
        """Both."""
        return self.dist(self.dist_params(obs))

    def update_statistics(self, obs: Tensor) -> None:
        """It has none."""


def two_action_batch(mdp: TabularMDP, policy: nn.Module) -> Batch:
    """Both actions once, the advantage weighted by pi: PG's expectation is exact.

    F depends on the one state only.
    """
    pi = action_probabilities(policy, 1)
    obs = torch.ones(2, 1, dtype=torch.float64)
    return Batch(obs, torch.tensor([0, 1]), 2 * (pi * mdp.R)[0])


def two_action_example() -> Result:
    """Slide "Example of Natural Gradient on 1-d problem: 2 actions, 1 state": PG slows down.

    J' = 99 e^theta / (1 + e^theta)^2, F = e^theta / (1 + e^theta)^2; NPG moves by 99 eta a step.
    """
    mdp, eta, iterations = tabular.two_actions(), 0.005, 20
    rules: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "PG": (PG, {"optimizer": partial(SGD, lr=eta)}),
        "NPG": (NPG, {"max_kl": 1.0, "step_size": eta, **UNDAMPED}),
    }
    thetas = torch.linspace(-5, 5, 11, dtype=torch.float64)
    F_formula = thetas.exp() / (1 + thetas.exp()) ** 2
    policies = [LogisticPolicy(theta) for theta in thetas.tolist()]
    batches = [two_action_batch(mdp, policy) for policy in policies]
    slopes = torch.cat([estimated_gradient(*x) for x in zip(policies, batches, strict=True)])
    fisher = torch.cat([
        fisher_operator(policy, batch, "exact")(torch.ones(1, dtype=torch.float64))
        for policy, batch in zip(policies, batches, strict=True)
    ])  # fmt: skip

    paths = {}
    for name, (rule, settings) in rules.items():
        policy, path = LogisticPolicy(0.0), [torch.zeros(1, dtype=torch.float64)]
        for _ in range(iterations):
            rule(policy, **settings).step(two_action_batch(mdp, policy))
            path.append(parameters_of(policy))
        paths[name] = torch.cat(path)
    moves = {name: path.diff() for name, path in paths.items()}
    returns = {name: 1 + 99 * path.sigmoid() for name, path in paths.items()}
    rows = [
        at_most("J' of PG against the slide's", gap(slopes, 99 * F_formula), 1e-12),
        at_most("fisher_operator against the slide's", gap(fisher, F_formula), 1e-12),
        Row("PG: largest step / step before", float((moves["PG"][1:] / moves["PG"][:-1]).max()),
            0.0, 0.999),
        Row("PG: last step / first step", float(moves["PG"][-1] / moves["PG"][0]), 0.0, 0.5),
        at_most("NPG: step / 99 eta - 1", (moves["NPG"] / (99 * eta) - 1).abs().max(), 1e-9),
    ]  # fmt: skip
    return Result(rows, {"theta": paths, "J": returns, "eta": eta})


STATEMENTS: list[Callable[[], Result]] = [
    unbiased_for_any_baseline,
    variance_without_and_with_baseline,
    performance_difference_lemma,
    degradation_bound,
    kl_is_a_divergence,
    estimated_trpo,
    npg_is_trpo_to_leading_order,
    fisher_is_a_sum_over_steps,
    closed_form_update,
    first_order_expansion,
    taylor_expansion_of_the_constraint,
    kl_gradient_is_zero,
    kl_hessian_is_fisher,
    trajectory_kl_sums_over_steps,
    proximal_policy_optimization,
    importance_sampling,
    two_action_example,
]


def slide(statement: Callable[[], Result]) -> str:
    """The title of a statement's slide: what its docstring has in quotes first."""
    assert statement.__doc__ is not None
    return statement.__doc__.split('"')[1]
